// The table of kernels in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace bertfast::cpu {

struct Isa {
  const Kernels* table;  // null: not in this build
  std::string name;
  bool runs_here;
};

// Every known instruction set, widest first.
const std::vector<Isa>& isas();

// The table of that name. Throws std::invalid_argument for an unknown name, and for one that this build or this CPU lacks; `source` is
// where the name came from, for the message.
const Kernels& table_named(const std::string& name, const std::string& source);

// The last table set; before, the one that BERTFAST_ISA names, else the widest that runs here.
const Kernels& kernels();
void use_kernels(const Kernels& table);

}  // namespace bertfast::cpu
