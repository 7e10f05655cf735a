// Which table of kernels this process uses.
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

// Every instruction set that bertfast knows, widest first.
const std::vector<Isa>& isas();

// The table of that name; throws std::invalid_argument for a name that does not exist, that this build lacks, or that
// this CPU lacks. `source` says in the message where the name came from.
const Kernels& table_named(const std::string& name, const std::string& source);

// The table in use: the one that BERTFAST_ISA names, else the widest that runs here; or the last one set.
const Kernels& kernels();
void use_kernels(const Kernels& table);

}  // namespace bertfast::cpu
