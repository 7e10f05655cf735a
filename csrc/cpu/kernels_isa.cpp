// Compiled once per instruction set; CMake sets BERTFAST_ISA_NAME and the -m flags.

#include "add_layer_norm.inl.h"
#include "cached_attention.inl.h"
#include "embed_layer_norm.inl.h"
#include "int8_linear.inl.h"
#include "int8_quantize.inl.h"
#include "kernels.h"
#include "linear.inl.h"
#include "varlen_attention.inl.h"

#define BERTFAST_STRING_(name) #name
#define BERTFAST_STRING(name) BERTFAST_STRING_(name)

namespace bertfast::cpu::BERTFAST_ISA_NAME {

extern const Kernels table;
const Kernels table = {
    BERTFAST_STRING(BERTFAST_ISA_NAME),
    multiplies_bfloat16,
    {embed_layer_norm<float>, add_layer_norm<float>, linear<float>, varlen_attention<FloatLanes, float>,
     varlen_attention<Bfloat16Lanes, float>, cached_attention<float>},
    {embed_layer_norm<bfloat16>, add_layer_norm<bfloat16>, linear<bfloat16>, varlen_attention<Bfloat16Lanes, bfloat16>,
     varlen_attention<Bfloat16Lanes, bfloat16>, cached_attention<bfloat16>},
    {int8_qmax, int8_quantize, int8_linear, embed_layer_norm<float, uint8_t>},
    linear_scratch,
    attention_scratch,
};

}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
