// Which rows of a KV cache are taken, how many of their cells are filled, and in which order the running sequences stand
// in the batch. Holds no keys and values: those lie in tensors [slots, heads, cells, head_size] that the caller owns.
//
// A BERT has 512 positions at most, so a slot is one row with room for the longest sequence: no blocks, no page table. Each cell
// has a label instead, a number for the write that filled it: beams of one prompt are copied to and fro, and labels tell how far
// two slots hold the same anyway.
#pragma once

#include <cstdint>
#include <vector>

namespace bertfast {

class SlotTable {
 public:
  // Cells first .. last - 1 of a slot that another slot must take over.
  struct Copy {
    int64_t from, to, first, last;
  };

  // Throws std::invalid_argument for a negative size.
  SlotTable(int64_t slots, int64_t cells);

  int64_t slots() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t cells() const { return cells_; }
  const std::vector<int64_t>& running() const { return running_; }  // slots in the order of the batch
  std::vector<int64_t> lengths() const;                             // filled cells of each running sequence

  // Every operation below throws std::invalid_argument, and changes nothing, where it cannot be done as a whole.

  // One more running sequence for each length, at the end of the batch, that many of its cells filled. Returns their slots.
  std::vector<int64_t> admit(const std::vector<int64_t>& lengths);

  // `count` more cells filled in every running sequence.
  void extend(int64_t count);

  // The last `count` cells of every running sequence are free again.
  void crop(int64_t count);

  // Sequence i of the batch becomes a copy of what was sequence parents[i]; a sequence that is nobody's parent ends. A parent's
  // first child stays in its slot; another gets the free slot that holds most of its cells already. Returns what the caller must
  // copy before the next write: the cells from the first one on that differs. No slot is copied both from and to.
  std::vector<Copy> reorder(const std::vector<int64_t>& parents);

  // Throws std::logic_error, naming what is wrong, unless every slot is either free or running, once, and no sequence is
  // longer than its slot.
  void check_integrity() const;

 private:
  void fill(int64_t slot, int64_t count);  // the next cells of a slot, each with a label that no cell has

  int64_t cells_;
  int64_t last_label_ = 0;
  std::vector<int64_t> labels_;   // [slots, cells]: of what lies there, in free slots too; 0: nothing yet
  std::vector<int64_t> lengths_;  // by slot; 0 where free
  std::vector<int64_t> running_;
  std::vector<int64_t> free_;  // the next one to hand out last
};

}  // namespace bertfast
