"""generate(): transformers' tokens for every strategy, and our loop wherever `why_reference_loop` allows."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.models.bert import modeling_bert as theirs

import bertfast
from bertfast.cache.objects import CACHE_FIELD
from bertfast.engine import eligibility
from bertfast.generation import beam_search, loop
from bertfast.generation.decode_batch import DecodeBatch
from bertfast.runtime.native import _C

V, LIMIT = 80, 64
ENDS = list(range(2, 10))  # several end-of-sequence tokens, so that rows end at different times
NEAR = 1e-4  # two scores closer than this may come out in either order


@pytest.fixture(scope="module")
def pair():
    config = BertConfig(
        vocab_size=V, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, max_position_embeddings=LIMIT,
        is_decoder=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    original = theirs.BertLMHeadModel(config).eval()
    for parameter in original.parameters():
        parameter.data.normal_(0, 0.3)
    return original, bertfast.optimize(copy.deepcopy(original))


@pytest.fixture(autouse=True)
def fast_path_only(monkeypatch):
    def refuse(kind, message):
        raise AssertionError(f"{kind} took the reference path: {message}")

    monkeypatch.setattr(eligibility, "warn_once", refuse)


@pytest.fixture
def loops(monkeypatch):
    """Which loop each generate() took, and how many rows each of our steps had."""
    taken: list[str] = []
    rows: list[int] = []
    sample, step, searched = loop.run_loop, DecodeBatch.step, beam_search.BeamSearchModel

    def noted(*args, **kwargs):
        taken.append("ours")
        return sample(*args, **kwargs)

    def noted_search(*args):
        taken.append("beams")
        return searched(*args)

    def counted(self, tokens):
        rows.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(loop, "run_loop", noted)
    monkeypatch.setattr(beam_search, "BeamSearchModel", noted_search)
    monkeypatch.setattr(DecodeBatch, "step", counted)
    return taken, rows


def make_prompts(B: int, S: int = 10, ragged: bool = True) -> dict[str, Tensor]:
    lengths = torch.randint(1, S + 1, (B, 1)) if ragged else torch.full((B, 1), S)
    lengths[0] = S
    mask = (torch.arange(S) >= S - lengths).long()
    return {"input_ids": torch.randint(10, V, (B, S)) * mask, "attention_mask": mask}


def generate_both(pair, prompts, **options):
    outputs = []
    for model in pair:
        torch.manual_seed(1)
        outputs.append(model.generate(**prompts, **options))
    return outputs


def assert_same_tokens(original, prompts, expected: Tensor, actual: Tensor) -> None:
    """Where they differ, transformers' best two scores must have been as good as equal."""
    if expected.shape == actual.shape and torch.equal(expected, actual):
        return
    for row, (a, b) in enumerate(zip(expected, actual, strict=True)):
        width = min(len(a), len(b))
        different = (a[:width] != b[:width]).nonzero()
        if len(different):
            at = int(different[0])
            mask = torch.cat([prompts["attention_mask"][row], torch.ones(at - prompts["attention_mask"].shape[1], dtype=torch.long)])
            real = a[:at][mask.bool()]
            best = original(real[None], use_cache=False).logits[0, -1].topk(2).values
            assert best[0] - best[1] <= NEAR, f"row {row} differs at {at}"


@pytest.mark.parametrize("seed", range(10))
def test_greedy_tokens_of_ragged_prompts(pair, loops, seed):  # ten batches of five: 50 prompts
    torch.manual_seed(seed)
    prompts = make_prompts(5)
    expected, actual = generate_both(pair, prompts, max_new_tokens=30, eos_token_id=ENDS)
    assert_same_tokens(pair[0], prompts, expected, actual)
    taken, rows = loops
    assert taken == ["ours"]
    assert rows == sorted(rows, reverse=True), "rows that have ended leave the batch"


def test_rows_that_have_ended_leave_the_batch(pair, loops):
    prompts = make_prompts(12)
    expected, actual = generate_both(pair, prompts, max_new_tokens=40, eos_token_id=ENDS, do_sample=True, temperature=3.0)
    assert torch.equal(expected, actual)
    rows = loops[1]
    going = [int((expected[:, 10 + i :] != 0).any(dim=1).sum()) for i in range(1, expected.shape[1] - 10)]
    assert rows == going
    assert len(set(rows)) > 2, "several rows ended at different times, or this shows nothing"


def test_a_step_is_one_crossing_after_the_first(pair, monkeypatch):
    prompts = make_prompts(4)
    called = []
    linear = bertfast.ops.linear
    monkeypatch.setattr(bertfast.ops, "linear", lambda *args, **kwargs: called.append(1) or linear(*args, **kwargs))
    expected, actual = generate_both(pair, prompts, max_new_tokens=20, eos_token_id=ENDS, do_sample=True, temperature=3.0)
    assert torch.equal(expected, actual)
    once = 3 * 3 + 2  # each layer's output, up and down, and the head's two
    assert len(called) == once + 1 + once, "the prompt, whose last layer makes some queries apart; and the step that is recorded"


def test_weights_that_move_between_steps_are_found_again(pair):
    class Mover(BaseStreamer):
        def __init__(self, model):
            self.model = model

        def put(self, value):
            for parameter in self.model.parameters():
                parameter.data = parameter.data.clone()

        def end(self):
            pass

    prompts = make_prompts(1)
    model = copy.deepcopy(pair[1])
    expected = pair[0].generate(**prompts, max_new_tokens=15, eos_token_id=ENDS)
    assert torch.equal(model.generate(**prompts, max_new_tokens=15, eos_token_id=ENDS, streamer=Mover(model)), expected)


def assert_same_beams(expected, actual) -> None:
    """The same tokens, scores and origins; where tokens differ, the scores must have been as good as equal."""
    assert type(actual) is type(expected)
    assert list(actual.keys()) == list(expected.keys())
    torch.testing.assert_close(actual.sequences_scores, expected.sequences_scores, rtol=0, atol=NEAR)
    if torch.equal(expected.sequences, actual.sequences):
        assert torch.equal(expected.beam_indices, actual.beam_indices)
    for a, b, score in zip(expected.sequences, actual.sequences, expected.sequences_scores - actual.sequences_scores, strict=True):
        assert torch.equal(a, b) or abs(score) <= NEAR


def assert_same_cells(expected, actual, mask: Tensor) -> Tensor:
    """The same keys and values wherever the prompts are not padded, and in all that followed. Returns where that is, [B, P] bool."""
    P = expected.get_seq_length()
    assert actual.get_seq_length() == P
    seen = torch.nn.functional.pad(mask.bool(), (0, P - mask.shape[1]), value=True)
    for a, b in zip(actual.layers, expected.layers, strict=True):
        for one, other in ((a.keys, b.keys), (a.values, b.values)):
            assert one.shape == other.shape
            torch.testing.assert_close(one.transpose(1, 2)[seen], other.transpose(1, 2)[seen], rtol=0, atol=NEAR)
            assert not one.transpose(1, 2)[~seen].any()
    return seen


RETURNED = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("seed", range(10))  # ten batches of five: 50 prompts
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_beam_search(pair, loops, seed, ragged):
    torch.manual_seed(seed)
    prompts = make_prompts(5, ragged=ragged)
    expected, actual = generate_both(pair, prompts, max_new_tokens=15, num_beams=3, eos_token_id=ENDS, **RETURNED)
    assert_same_beams(expected, actual)
    assert loops[0] == ["beams"]
    assert set(loops[1]) == {15}


BEAMS = {
    "one-end": {"eos_token_id": 2},
    "no-end": {"eos_token_id": None},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 1.5},
    "short": {"length_penalty": -0.5},
    "long": {"length_penalty": 2.0, "early_stopping": True},
    "returned": {"num_return_sequences": 4, "length_penalty": 0.5},
    "many": {"num_beams": 9, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_k": 20, "num_return_sequences": 2},
    "penalty": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "bad-words": {"bad_words_ids": [[7], [8, 9]], "min_new_tokens": 5},
    "all-hidden": {"renormalize_logits": True, "forced_eos_token_id": 3},
}


@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
def test_beam_search_with(pair, loops, options):
    prompts = make_prompts(4)
    given = {"max_new_tokens": 15, "num_beams": 4, "eos_token_id": ENDS, **options}
    models = [copy.deepcopy(m) for m in pair]
    if given["eos_token_id"] is None:
        for m in models:
            m.generation_config.eos_token_id = None
    assert torch.equal(*generate_both(models, prompts, **given))
    assert loops[0] == ["beams"]
    assert_same_beams(*generate_both(models, make_prompts(4, ragged=False), **given, **RETURNED))
    assert loops[0] == ["beams", "beams"]


def test_beams_move_and_copy_no_more_than_differs(pair, monkeypatch):
    """What would make a step copy the cache: beams do change places here, and cells of the prompt are copied once for each beam."""
    moves: list[list[list[int]]] = []
    orders: list[list[int]] = []

    class Noted(_C.SlotTable):
        def reorder(self, parents):
            orders.append(parents)
            moves.append(super().reorder(parents))
            return moves[-1]

    monkeypatch.setattr(_C, "SlotTable", Noted)
    prompts = make_prompts(2, ragged=False)
    expected, actual = generate_both(pair, prompts, max_new_tokens=20, num_beams=4, eos_token_id=ENDS)
    assert torch.equal(expected, actual)
    assert moves[0] == [[slot, other, 0, 10] for slot, others in ((0, (2, 3, 4)), (1, (5, 6, 7))) for other in others]
    assert any(order != sorted(order) for order in orders), "beams change places, or this shows nothing"
    later = [move for copies in moves[1:] for move in copies]
    assert later
    assert all(first >= 10 for _, _, first, _ in later)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_cache_of_a_beam_search(pair, loops, ragged):
    prompts = make_prompts(3, ragged=ragged)
    expected, actual = generate_both(pair, prompts, max_new_tokens=12, num_beams=3, eos_token_id=ENDS, **RETURNED)
    cache = actual[CACHE_FIELD]
    seen = assert_same_cells(expected[CACHE_FIELD], cache, prompts["attention_mask"].repeat_interleave(3, dim=0))
    assert loops[0] == ["beams"]
    order = torch.tensor([4, 0, 0, 8, 3, 3, 6, 7, 7])  # the caller goes on with it, by transformers' own interface
    for found in (expected[CACHE_FIELD], cache):
        found.reorder_cache(order)
        found.batch_select_indices(torch.tensor([0, 1, 5]))
        found.batch_repeat_interleave(2)
        found.crop(-2)
    seen = seen[order][[0, 0, 1, 1, 5, 5], :-2]
    mask = torch.cat([seen, seen.new_ones(6, 1)], dim=1).long()
    new = torch.randint(10, V, (6, 1))
    positions = mask.sum(dim=1, keepdim=True) - 1
    with torch.no_grad():
        outputs = [
            model(new, attention_mask=mask, position_ids=positions, **{CACHE_FIELD: found}).logits
            for model, found in zip(pair, (expected[CACHE_FIELD], cache), strict=True)
        ]
    torch.testing.assert_close(*outputs, rtol=0, atol=NEAR)


@pytest.mark.parametrize(("name", "num_beams"), [
    ("prepare_inputs_for_generation", 1),
    ("prepare_inputs_for_generation", 3),
    ("_update_model_kwargs_for_generation", 1),
    ("_update_model_kwargs_for_generation", 3),
    ("_reorder_cache", 3),
])  # fmt: skip
def test_a_hook_that_a_subclass_overrides_is_called(pair, loops, name, num_beams):
    asked = []

    def own(self, *args, **kwargs):
        asked.append(name)
        if name == "_reorder_cache":
            args[0].reorder_cache(args[1])
            return args[0]
        return getattr(super(type(self), self), name)(*args, **kwargs)

    model = copy.deepcopy(pair[1])
    model.__class__ = type("BertSubclass", (type(model),), {name: own})
    prompts = make_prompts(2)
    options = {"max_new_tokens": 6, "num_beams": num_beams, "eos_token_id": ENDS}
    assert torch.equal(*generate_both((pair[0], model), prompts, **options))
    assert asked
    assert loops[0] == []


def test_a_hook_set_on_the_model_itself_is_called(pair, loops):
    """As peft does for the time of a generation."""
    model, asked = copy.deepcopy(pair[1]), []
    prepare = model.prepare_inputs_for_generation

    def noted(*args, **kwargs):
        asked.append(1)
        return prepare(*args, **kwargs)

    model.prepare_inputs_for_generation = noted
    assert torch.equal(*generate_both((pair[0], model), make_prompts(2), max_new_tokens=6, eos_token_id=ENDS))
    assert asked
    assert loops[0] == []


def test_beams_whose_prompts_differ_take_transformers_loop(pair, loops):
    """As a caller may arrange who calls the search itself."""
    prompts = make_prompts(2, ragged=False)
    prompts["token_type_ids"] = torch.zeros_like(prompts["input_ids"])

    def differ(model):
        search = type(model)._beam_search

        def altered(self, input_ids, *args, **kwargs):
            input_ids = input_ids.clone()
            input_ids[1, 0] += 1
            return search(self, input_ids, *args, **kwargs)

        return type(type(model).__name__, (type(model),), {"_beam_search": altered})

    models = [copy.deepcopy(m) for m in pair]
    for m in models:
        m.__class__ = differ(m)
    assert torch.equal(*generate_both(models, prompts, max_new_tokens=6, num_beams=3, eos_token_id=ENDS))
    assert loops[0] == []


STRATEGIES = {
    "plain": {},
    "temperature": {"temperature": 1.7},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.1},
    "typical": {"typical_p": 0.6},
    "epsilon": {"epsilon_cutoff": 0.02},
    "penalty": {"repetition_penalty": 1.4, "temperature": 3.0},
    "no-repeats": {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "bad-words": {"bad_words_ids": [[7], [8, 9]], "suppress_tokens": [11, 12]},
    "all": {"temperature": 3.0, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("do_sample", [True, False], ids=["sampling", "greedy"])
@pytest.mark.filterwarnings("ignore")  # a sampling option without sampling
def test_strategies_under_one_seed(pair, loops, strategy, do_sample):
    prompts = make_prompts(6)
    options = {"max_new_tokens": 25, "eos_token_id": ENDS, "do_sample": do_sample, "top_k": 0, **STRATEGIES[strategy]}
    expected, actual = generate_both(pair, prompts, **options)
    assert torch.equal(expected, actual)
    assert loops[0] == ["ours"]
    if do_sample and "repetition_penalty" not in options:  # which may keep a number for every row of a padded batch
        assert len(set(loops[1])) > 1, "rows left while others drew on"


@pytest.mark.parametrize("options", [
    pytest.param({"num_beams": 3, "do_sample": True}, id="beam-sampling"),
    pytest.param({"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True}, id="beams-returned"),
    pytest.param({"do_sample": True, "num_return_sequences": 3}, id="several-samples"),
    pytest.param({"use_cache": False}, id="no-cache"),
    pytest.param({"cache_implementation": "static"}, id="static-cache"),
    pytest.param({"prefill_chunk_size": 4}, id="chunked-prefill"),
    pytest.param({"prompt_lookup_num_tokens": 2}, id="prompt-lookup"),
    pytest.param({"guidance_scale": 1.5}, id="guidance"),
])  # fmt: skip
def test_other_strategies(pair, options):
    prompts = make_prompts(1 if "prompt_lookup_num_tokens" in options else 3)
    expected, actual = generate_both(pair, prompts, max_new_tokens=12, eos_token_id=ENDS, **options)
    assert torch.equal(expected, actual)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("do_sample", [False, True])
def test_scores_logits_and_the_cache_are_returned(pair, loops, ragged, do_sample):
    prompts = make_prompts(3, ragged=ragged)
    options = {
        "output_scores": True,
        "output_logits": True,
        "return_dict_in_generate": True,
        "do_sample": do_sample,
        "temperature": 0.9 if do_sample else None,
    }
    expected, actual = generate_both(pair, prompts, max_new_tokens=12, eos_token_id=ENDS, **options)
    assert type(actual) is type(expected)
    assert list(actual.keys()) == list(expected.keys())
    assert torch.equal(expected.sequences, actual.sequences)
    for name in ("scores", "logits"):
        assert len(actual[name]) == len(expected[name])
        for a, b in zip(actual[name], expected[name], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=NEAR)
    assert loops[0] == ["ours"]
    assert_same_cells(expected[CACHE_FIELD], actual[CACHE_FIELD], prompts["attention_mask"])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_columns_in_which_every_prompt_is_padded(pair, loops, num_beams):
    prompts = {name: torch.nn.functional.pad(t, (3, 0)) for name, t in make_prompts(3).items()}
    expected, actual = generate_both(pair, prompts, max_new_tokens=5, num_beams=num_beams, eos_token_id=ENDS, **RETURNED)
    assert torch.equal(expected.sequences, actual.sequences)
    assert len(loops[0]) == 1
    assert_same_cells(expected[CACHE_FIELD], actual[CACHE_FIELD], prompts["attention_mask"].repeat_interleave(num_beams, dim=0))


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_cache_with_keep_padding_takes_transformers_loop(pair, loops, num_beams):
    model = copy.deepcopy(pair[1])
    model.keep_padding = model.bert.keep_padding = True
    expected, actual = generate_both(
        (pair[0], model), make_prompts(3), max_new_tokens=5, num_beams=num_beams, eos_token_id=ENDS, **RETURNED
    )
    assert torch.equal(expected.sequences, actual.sequences)
    assert loops[0] == []


def test_attentions_and_hidden_states_are_returned(pair):
    eager = [copy.deepcopy(m) for m in pair]
    for model in eager:
        model.set_attn_implementation("eager")
    prompts = make_prompts(3)
    options = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    expected, actual = generate_both(eager, prompts, max_new_tokens=4, eos_token_id=ENDS, **options)
    assert torch.equal(expected.sequences, actual.sequences)
    assert [[t.shape for t in step] for step in actual.attentions] == [[t.shape for t in step] for step in expected.attentions]
    assert [[t.shape for t in step] for step in actual.hidden_states] == [[t.shape for t in step] for step in expected.hidden_states]


def test_a_given_cache_is_continued(pair):
    prompts = make_prompts(3, ragged=False)
    ids = prompts["input_ids"]
    outputs = []
    for model in pair:
        with torch.no_grad():
            cache = model(ids[:, :6], **{CACHE_FIELD: DynamicCache()})[CACHE_FIELD]
        outputs.append(model.generate(ids, max_new_tokens=10, eos_token_id=ENDS, **{CACHE_FIELD: cache}))
        assert cache.get_seq_length() == outputs[-1].shape[1] - 1
    assert torch.equal(*outputs)


def test_embeddings_as_the_prompt(pair):
    prompts = make_prompts(3)
    embeds = pair[0].get_input_embeddings()(prompts["input_ids"]).detach()
    outputs = [
        m.generate(inputs_embeds=embeds, attention_mask=prompts["attention_mask"], max_new_tokens=10, eos_token_id=ENDS) for m in pair
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("what", ["token_type_ids", "position_ids"])
def test_arguments_that_go_with_every_token(pair, loops, what):
    prompts = make_prompts(4)
    if what == "token_type_ids":
        prompts[what] = torch.randint(0, 2, prompts["input_ids"].shape)
    else:
        prompts[what] = (prompts["attention_mask"].cumsum(1) + 7) * prompts["attention_mask"]
    expected, actual = generate_both(pair, prompts, max_new_tokens=15, eos_token_id=ENDS)
    assert torch.equal(expected, actual)
    assert loops[0] == ["ours"]


def test_without_an_end_nothing_is_padded(pair, loops):
    prompts = make_prompts(4)
    models = [copy.deepcopy(m) for m in pair]
    for m in models:
        m.generation_config.eos_token_id = None
    expected, actual = generate_both(models, prompts, max_new_tokens=20)
    assert torch.equal(expected, actual)
    assert actual.shape[1] == 30
    assert set(loops[1]) == {4}


def test_one_new_token_and_prompts_of_one(pair):
    for S, new in ((10, 1), (1, 12), (1, 1)):
        expected, actual = generate_both(pair, make_prompts(3, S), max_new_tokens=new, eos_token_id=ENDS)
        assert torch.equal(expected, actual)


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.pieces.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamers_see_every_token_in_turn(pair, loops):
    prompts, streams = make_prompts(1), [Collected(), Collected()]
    for model, stream in zip(pair, streams, strict=True):
        model.generate(**prompts, max_new_tokens=15, eos_token_id=ENDS, streamer=stream)
    assert streams[0].pieces == streams[1].pieces
    assert [s.ended for s in streams] == [1, 1]
    assert loops[0] == ["ours"]


class Stop(StoppingCriteria):
    """Ends a row at its third token below 40; remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        self.shown.append(tuple(input_ids.shape))
        return (input_ids[:, 10:] < 40).sum(dim=1) >= 3


class Push(LogitsProcessor):
    """Of the whole batch at once: needs every row, ended or not."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert len(input_ids) == len(scores) == 5
        return scores + torch.arange(5)[:, None] * torch.linspace(-1, 1, V)


def test_own_criteria_and_processors(pair, loops):
    prompts = make_prompts(5)
    results = []
    for model in pair:
        stop = Stop()
        criteria, processors = StoppingCriteriaList([stop]), LogitsProcessorList([Push()])
        tokens = model.generate(**prompts, max_new_tokens=30, eos_token_id=ENDS, stopping_criteria=criteria, logits_processor=processors)
        results.append((tokens, stop.shown))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert loops[0] == ["ours"]
    assert set(loops[1]) == {5}


def test_time_runs_out(pair):
    prompts = make_prompts(3)
    out = pair[1].generate(**prompts, max_new_tokens=30, max_time=0.0, eos_token_id=[2])
    assert out.shape[1] == 11


def test_a_forgotten_eval_or_a_hook_takes_transformers_loop(pair, monkeypatch, loops):
    monkeypatch.setattr(eligibility, "warn_once", lambda kind, message: None)
    model = copy.deepcopy(pair[1])
    prompts = make_prompts(3)
    expected = pair[0].generate(**prompts, max_new_tokens=10, eos_token_id=ENDS)
    seen = []
    model.bert.encoder.layer[1].register_forward_hook(lambda *args: seen.append(1))
    assert torch.equal(model.generate(**prompts, max_new_tokens=10, eos_token_id=ENDS), expected)
    assert len(seen) == expected.shape[1] - 10
    model = copy.deepcopy(pair[1])
    model.register_forward_hook(lambda *args: seen.append(2))
    assert torch.equal(model.generate(**prompts, max_new_tokens=10, eos_token_id=ENDS), expected)
    assert seen.count(2) == seen.count(1)
    assert loops[0] == []


def test_right_padding_takes_transformers_loop(pair, loops):
    prompts = make_prompts(3)
    prompts = {name: t.flip(1) for name, t in prompts.items()}
    model = copy.deepcopy(pair[1])
    model.keep_padding = model.bert.keep_padding = True  # its last column is padding, whose logits count here
    outputs = [m.generate(**prompts, max_new_tokens=8, eos_token_id=ENDS) for m in (pair[0], model)]
    assert torch.equal(*outputs)
    assert loops[0] == []


class TestLimits:
    """Said before anything is computed."""

    @pytest.fixture(autouse=True)
    def nothing_is_computed(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("something was computed")

        monkeypatch.setattr(bertfast.ops, "linear", refuse)

    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}, {"use_cache": False}])
    def test_more_positions_than_there_are(self, pair, options):
        with pytest.raises(ValueError, match="max_position_embeddings=64"):
            pair[1].generate(**make_prompts(3), max_new_tokens=LIMIT - 10 + 2, **options)

    def test_more_than_the_cache_holds(self, pair):
        from transformers.cache_utils import StaticCache

        cache = StaticCache(config=pair[1].config, max_cache_len=20)
        with pytest.raises(ValueError, match="holds 20"):
            pair[1].generate(**make_prompts(3), max_new_tokens=12, **{CACHE_FIELD: cache})


def test_all_positions_may_be_used(pair):
    prompts = make_prompts(2)
    models = [copy.deepcopy(m) for m in pair]
    for m in models:
        m.generation_config.eos_token_id = None
    expected, actual = generate_both(models, prompts, max_new_tokens=LIMIT - 10 + 1)
    assert torch.equal(expected, actual)
    assert actual.shape[1] == LIMIT + 1
