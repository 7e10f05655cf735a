// The instruction set and the number of threads.

#include <pybind11/pybind11.h>

#include <string>

#include "../openmp.h"
#include "bind.h"

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
  m.def("isa", [] { return std::string(cpu::kernels().isa); }, "The instruction set whose kernels are in use.");
  m.def(
      "multiplies_bfloat16", [] { return cpu::kernels().multiplies_bfloat16; },
      "Whether the instruction set in use multiplies bfloat16, or widens it to float32 first.");
  m.def(
      "isas",
      [] {
        py::list found;
        for (const cpu::Isa& isa : cpu::isas()) found.append(py::make_tuple(isa.name, isa.table != nullptr, isa.runs_here));
        return found;
      },
      "(name, whether this build has it, whether this CPU has it) of every known instruction set, widest first.");
  m.def(
      "use_isa", [](const std::string& name) { cpu::use_kernels(cpu::table_named(name, "use_isa")); }, py::arg("name"),
      "Switches this process to the kernels of another instruction set; for tests, between calls.");

  m.def(
      "set_num_threads",
      [](int threads) {
        BF_CHECK(threads >= 0, "num_threads: got ", threads, ", expected 1 or more, or 0 for the default");
        set_num_threads(threads);
      },
      release(), py::arg("threads"), "Number of computing threads, the caller included; 0 for the default.");
  m.def("get_num_threads", [] { return num_threads(); }, release());
  m.def("update_default_threads", update_default_threads, release(), py::arg("threads"),
        "The default is so many from now on; nothing changes where a number was set.");
  m.def(
      "set_default_threads",
      [](py::function ask) {
        Py_XDECREF(ask_for_threads);
        ask_for_threads = ask.release().ptr();
        set_default_threads(ask_python);
      },
      py::arg("ask"), "ask() returns the number of threads if none was set; called once per process, forked children included.");
  m.def("end_openmp_threads_before_forks", end_openmp_threads_before_forks,
        "From now on a thread that forks ends its libgomp threads first, which a child would wait for. False where that is not needed.");
}

}  // namespace bertfast
