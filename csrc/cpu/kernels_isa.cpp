// Compiled once per instruction set; CMake sets BERTFAST_ISA_NAME and the -m flags.

#include "attention.inl.h"
#include "decode_attention.inl.h"
#include "embedding.inl.h"
#include "kernels.h"
#include "layernorm.inl.h"
#include "linear.inl.h"

#define BERTFAST_STRING_(name) #name
#define BERTFAST_STRING(name) BERTFAST_STRING_(name)

namespace bertfast::cpu::BERTFAST_ISA_NAME {

extern const Kernels table;
const Kernels table = {
    BERTFAST_STRING(BERTFAST_ISA_NAME),
    embed_layer_norm,
    add_layer_norm,
    linear,
    attention,
    cached_attention,
    linear_scratch,
    attention_scratch,
};

}  // namespace bertfast::cpu::BERTFAST_ISA_NAME
