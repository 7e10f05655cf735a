// The KV cache: the ops on it, and the table of its rows.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "../cpu/ops.h"
#include "../kv_cache/slot_table.h"
#include "bind.h"
#include "bind_cache.h"

namespace py = pybind11;

namespace bertfast {
namespace {

template <class Number>
void write_cache(Address k, int64_t k_stride, Address v, int64_t v_stride, int64_t tokens, Address keys,
                 const CacheSideStrides& key_strides, Address values, const CacheSideStrides& value_strides, const CacheShape& shape,
                 Address rows, Address positions) {
  const auto [cache_rows, heads, cache_positions, head_size] = shape;
  run<cpu::WriteCacheOp<Number>>({at<const Number>(k), at<const Number>(v), at<Number>(keys), at<Number>(values), at<const int64_t>(rows),
                                  at<const int64_t>(positions), k_stride, v_stride, cache_strides(key_strides, value_strides), tokens,
                                  heads, head_size, cache_rows, cache_positions});
}

template <class Number>
void cached_attention(Address q, int64_t q_stride, int64_t queries, Address keys, const CacheSideStrides& key_strides, Address values,
                      const CacheSideStrides& value_strides, const CacheShape& shape, Address rows, Address first, Address last,
                      float scale, Address out) {
  const auto [cache_rows, heads, cache_positions, head_size] = shape;
  run<cpu::CachedAttentionOp<Number>>({at<const Number>(q), at<const Number>(keys), at<const Number>(values), at<const int64_t>(rows),
                                       at<const int64_t>(first), at<const int64_t>(last), at<Number>(out), q_stride,
                                       cache_strides(key_strides, value_strides), queries, heads, head_size, scale, cache_rows,
                                       cache_positions});
}

}  // namespace

void bind_kv_cache(py::module_& m) {
  using py::arg;

  m.def("write_cache", BERTFAST_EITHER(write_cache), arg("k"), arg("k_stride"), arg("v"), arg("v_stride"), arg("tokens"), arg("keys"),
        arg("key_strides"), arg("values"), arg("value_strides"), arg("shape"), arg("rows"), arg("positions"), arg("bfloat16") = false,
        "keys[rows[t], :, positions[t]] = k[t], values likewise. ValueError for a row or position outside the cache.");
  m.def("cached_attention", BERTFAST_EITHER(cached_attention), arg("q"), arg("q_stride"), arg("queries"), arg("keys"), arg("key_strides"),
        arg("values"), arg("value_strides"), arg("shape"), arg("rows"), arg("first"), arg("last"), arg("scale"), arg("out"),
        arg("bfloat16") = false,
        "out[t] = softmax(q[t] keys^T scale) values over positions first[t] .. last[t] - 1 of row rows[t]. ValueError for a range outside "
        "the cache.");

  m.def(
      "argmax",
      [](Address scores, int64_t rows, int64_t columns, Address out) {
        run<cpu::ArgmaxOp>({at<const float>(scores), at<int64_t>(out), rows, columns});
      },
      release(), arg("scores"), arg("rows"), arg("columns"), arg("out"),
      "out int64[rows]: the first column where each row of scores float32[rows, columns] is largest; NaN is larger than anything.");

  py::class_<SlotTable>(m, "SlotTable", "Which rows of a KV cache (slots) are in use, and how many of their positions are filled.")
      .def("__init__", constructor<SlotTable, int64_t, int64_t>(), is_constructor(), arg("slots"), arg("positions"))
      .def_property_readonly("slots", &SlotTable::slots)
      .def_property_readonly("positions", &SlotTable::positions)
      .def_property_readonly("running", &SlotTable::running, "The slots of the running sequences, in the order of the batch.")
      .def_property_readonly("lengths", &SlotTable::lengths, "How many positions of each running sequence are filled.")
      .def("admit", &SlotTable::admit, arg("lengths"), "Adds sequences with so many positions filled; returns their slots.")
      .def("extend", &SlotTable::extend, arg("count"), "Fills `count` more positions of every running sequence.")
      .def("crop", &SlotTable::crop, arg("count"), "Frees the last `count` positions of every running sequence.")
      .def(
          "reorder",
          [](SlotTable& table, const std::vector<int64_t>& parents) {
            std::vector<std::array<int64_t, 4>> copies;
            for (const auto& [from, to, first, last] : table.reorder(parents)) copies.push_back({from, to, first, last});
            return copies;
          },
          arg("parents"),
          "Sequence i becomes a copy of sequence parents[i]; sequences without a child end. Returns the copies to make, each\n"
          "[from slot, to slot, first position, one past the last].")
      .def("check_integrity", &SlotTable::check_integrity, "RuntimeError unless every slot is either free or running, once.");
}

}  // namespace bertfast
