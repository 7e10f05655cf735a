// Instruction sets and threads.

#include <pybind11/pybind11.h>

#include <string>

#include "check.h"
#include "cpu/dispatch.h"
#include "parallel.h"

namespace py = pybind11;

namespace bertfast {
namespace {

PyObject* ask_for_threads = nullptr;  // lives as long as the process

int ask_python() {
  py::gil_scoped_acquire gil;
  return py::reinterpret_borrow<py::function>(ask_for_threads)().cast<int>();
}

}  // namespace

void bind_runtime(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;

  m.def("isa", [] { return std::string(cpu::kernels().isa); }, "The instruction set whose kernels are in use.");
  m.def(
      "multiplies_bfloat16", [] { return cpu::kernels().multiplies_bfloat16; },
      "Whether the table in use multiplies bfloat16 as it is, or widens it to float32 in the tile.");
  m.def(
      "isas",
      [] {
        py::list found;
        for (const cpu::Isa& isa : cpu::isas()) found.append(py::make_tuple(isa.name, isa.table != nullptr, isa.runs_here));
        return found;
      },
      "(name, in this build, this CPU has it) of every known instruction set, widest first.");
  m.def(
      "use_isa", [](const std::string& name) { cpu::use_kernels(cpu::table_named(name, "use_isa")); }, py::arg("name"),
      "Switches this process to another table of kernels; for tests, between calls.");

  m.def(
      "set_num_threads",
      [](int threads) {
        BF_CHECK(threads >= 0, "num_threads: got ", threads, ", expected 1 or more, or 0 for the default");
        set_num_threads(threads);
      },
      release(), py::arg("threads"), "How many threads compute, the caller included; 0 for the default.");
  m.def("get_num_threads", [] { return num_threads(); }, release());
  m.def(
      "set_default_threads",
      [](py::function ask) {
        Py_XDECREF(ask_for_threads);
        ask_for_threads = ask.release().ptr();
        set_default_threads(ask_python);
      },
      py::arg("ask"), "ask() gives the number of threads where none was set: called once per process, forked children included.");
}

}  // namespace bertfast
