#include <type_traits>

#include "items.h"
#include "ops.h"

namespace bertfast::cpu {

template <class Number>
int64_t AddLayerNormOp<Number>::items() const {
  return divide_up(args_.rows, rows_per_item(args_.hidden));
}

template <class Number>
void AddLayerNormOp<Number>::run(int64_t item) const {
  const RowRange rows = rows_of_item(item, args_.rows, args_.hidden);
  kernels_of<Number>(kernels_).add_layer_norm(args_, rows.first, rows.last);
  if constexpr (std::is_same_v<Number, float>)
    if (args_.quantized != nullptr) quantize_rows(kernels_, args_.out, args_.hidden, args_.quantized, rows);
}

template class AddLayerNormOp<float>;
template class AddLayerNormOp<bfloat16>;

}  // namespace bertfast::cpu
