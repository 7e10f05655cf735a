// The rows of a KV cache (slots): which are in use, how many of their positions are filled, and the order of the running sequences
// in the batch. Keys and values are tensors [slots, heads, positions, head_size] that the caller owns.
//
// A BERT has 512 positions at most, so a slot is one row as long as the longest sequence: no paging. Each position has a label, the number
// of the write that filled it, so that a reorder of beams copies only the positions in which two slots differ.
#pragma once

#include <cstdint>
#include <vector>

namespace bertfast {

class SlotTable {
 public:
  // Positions first .. last - 1 to copy from one slot to another.
  struct Copy {
    int64_t from, to, first, last;
  };

  // Throws std::invalid_argument for a negative size.
  SlotTable(int64_t slots, int64_t positions);

  int64_t slots() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t positions() const { return positions_; }
  const std::vector<int64_t>& running() const { return running_; }  // slots in the order of the batch
  std::vector<int64_t> lengths() const;                             // filled positions of each running sequence

  // The operations below throw std::invalid_argument or std::bad_alloc, and change nothing, if they cannot be done as a whole.

  // Appends a running sequence for each length, with so many positions filled, to the batch. Returns their slots.
  std::vector<int64_t> admit(const std::vector<int64_t>& lengths);

  // Fills `count` more positions of every running sequence.
  void extend(int64_t count);

  // Frees the last `count` positions of every running sequence.
  void crop(int64_t count);

  // Sequence i of the batch becomes a copy of former sequence parents[i]; a sequence that is nobody's parent ends. A parent's first child
  // keeps its slot, every other child gets the free slot that shares most leading positions with it. Returns the copies that the caller
  // must make before the next write, each from the first differing position on. No slot is copied both from and to.
  std::vector<Copy> reorder(const std::vector<int64_t>& parents);

  // Throws std::logic_error, naming the fault, unless every slot is either free or running, once, and no sequence is longer than its slot.
  void check_integrity() const;

 private:
  void fill(int64_t slot, int64_t count);  // the next positions of a slot, with new labels

  int64_t positions_;
  int64_t last_label_ = 0;
  std::vector<int64_t> labels_;   // [slots, positions]: of the last write, in free slots too; 0: none yet
  std::vector<int64_t> lengths_;  // by slot; 0 where free
  std::vector<int64_t> running_;
  std::vector<int64_t> free_;  // the last is handed out next
};

}  // namespace bertfast
