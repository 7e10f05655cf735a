// Watch and Pointers: whether a module tree and its parameters are unchanged since they were audited.
//
// The fast path relies on the audit of a model's modules: their children and classes, no hooks, no patched forward. To audit a BERT-base
// anew in Python takes longer than a layer of a short sequence; here it is pointer comparisons.
//
// Both hold Python objects, so that no address is used again while it is compared. They show them to the garbage collector: a model that
// refers to itself is a cycle through them.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "../inline_vector.h"
#include "bind.h"
#include "dlpack.h"

namespace py = pybind11;

namespace bertfast {
namespace {

class Watch {
 public:
  // members: (dict, key, value): dict[key] is value. absent: (dict, key): dict has no such key. sizes: (dict, n): len(dict) == n.
  // classes: (object, type): type(object) is type. attributes: (type, name, value): type.name, inherited or not, is value.
  // falsy: (dict, key): dict[key] exists and is false.
  Watch(const py::list& members, const py::list& absent, const py::list& sizes, const py::list& classes, const py::list& attributes,
        const py::list& falsy) {
    for (const py::handle entry : members) members_.push_back(keyed(entry.cast<py::tuple>()));
    for (const py::handle entry : absent) absent_.push_back(keyed(entry.cast<py::tuple>()));
    for (const py::handle entry : falsy) falsy_.push_back(keyed(entry.cast<py::tuple>()));
    for (const py::handle entry : sizes) {
      const auto pair = entry.cast<py::tuple>();
      sizes_.emplace_back(py::dict(pair[0]), pair[1].cast<Py_ssize_t>());
    }
    for (const py::handle entry : classes) {
      const auto pair = entry.cast<py::tuple>();
      classes_.emplace_back(pair[0], pair[1]);
    }
    for (const py::handle entry : attributes) {
      const auto triple = entry.cast<py::tuple>();
      attributes_.push_back({triple[0], triple[1], triple[2]});
    }
  }

  bool holds() const {
    if (cleared_) return false;
    for (const Keyed& e : members_)
      if (look_up(e) != e.value.ptr()) return false;
    for (const Keyed& e : absent_)
      if (look_up(e) != nullptr) return false;
    for (const auto& [dict, size] : sizes_)
      if (PyDict_Size(dict.ptr()) != size) return false;
    for (const auto& [object, type] : classes_)
      if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != type.ptr()) return false;
    for (const Attribute& a : attributes_) {
      const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(a.type.ptr(), a.name.ptr()));
      if (!found) throw py::error_already_set();
      if (!found.is(a.value)) return false;
    }
    return true;
  }

  // Whether every watched flag (Module.training) exists and is false.
  bool quiet() const {
    if (cleared_) return false;
    for (const Keyed& e : falsy_) {
      PyObject* flag = look_up(e);
      if (flag == Py_False) continue;
      if (flag == nullptr || flag == Py_True) return false;
      const int truth = PyObject_IsTrue(flag);
      if (truth < 0) throw py::error_already_set();
      if (truth != 0) return false;
    }
    return true;
  }

  // Calls with each reference that this owns, once; ends at the first result that is not 0 and returns it.
  template <class Visit>
  int visit(Visit call) const {
    const auto call_all = [&](std::initializer_list<PyObject*> owned) {
      for (PyObject* each : owned)
        if (const int result = each == nullptr ? 0 : call(each)) return result;
      return 0;
    };
    for (const auto* entries : {&members_, &absent_, &falsy_})
      for (const Keyed& e : *entries)
        if (const int result = call_all({e.dict.ptr(), e.key.ptr(), e.value.ptr()})) return result;
    for (const auto& [dict, size] : sizes_)
      if (const int result = call_all({dict.ptr()})) return result;
    for (const auto& [object, type] : classes_)
      if (const int result = call_all({object.ptr(), type.ptr()})) return result;
    for (const Attribute& a : attributes_)
      if (const int result = call_all({a.type.ptr(), a.name.ptr(), a.value.ptr()})) return result;
    return 0;
  }

  // Drops every reference. From then on nothing holds.
  void clear() {
    cleared_ = true;
    const auto drop = [](auto& entries) { std::decay_t<decltype(entries)>().swap(entries); };  // emptied before what it held is freed
    drop(members_), drop(absent_), drop(falsy_), drop(sizes_), drop(classes_), drop(attributes_);
  }

 private:
  struct Keyed {
    py::dict dict;
    py::object key, value;
  };
  struct Attribute {
    py::object type, name, value;
  };

  static Keyed keyed(const py::tuple& entry) {
    py::object key = entry[1];
    if (PyUnicode_CheckExact(key.ptr())) {  // interned, so that a look-up compares pointers
      PyObject* raw = key.release().ptr();
      PyUnicode_InternInPlace(&raw);
      key = py::reinterpret_steal<py::object>(raw);
    }
    return {py::dict(entry[0]), key, entry.size() > 2 ? py::object(entry[2]) : py::object()};
  }

  static PyObject* look_up(const Keyed& e) {  // borrowed
    PyObject* found = PyDict_GetItemWithError(e.dict.ptr(), e.key.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return found;
  }

  std::vector<Keyed> members_, absent_, falsy_;
  std::vector<std::pair<py::dict, Py_ssize_t>> sizes_;
  std::vector<std::pair<py::object, py::object>> classes_;
  std::vector<Attribute> attributes_;
  bool cleared_ = false;
};

// What plans and CUDA graphs rely on of a model's parameters: address, sizes, strides, dtype, device. Without torch headers it asks
// DLPack's C exchange API if the tensor type has it, about 20 ns a parameter, else the tensor's Python attributes, ten times as long. The
// size of a storage needs no comparison: it changes with the address, and a tensor of these sizes fits its storage.
class Pointers {
 public:
  // parameters: (Module._parameters, name). exchange: __dlpack_c_exchange_api__ of their type, or None.
  Pointers(const py::list& parameters, const py::object& exchange) : from_object_(from_object_of(exchange)) {
    for (const py::handle entry : parameters) {
      const auto pair = entry.cast<py::tuple>();
      Place place;
      place.dict = py::dict(pair[0]);
      place.name = pair[1];
      PyObject* parameter = find(place);
      if (parameter == nullptr) continue;
      place.address = address(parameter);
      dlpack::Tensor read;
      place.exchanged = exchanged(parameter, read) && address(read) == place.address;  // some devices lack DLPack
      if (place.exchanged) {
        place.dtype = read.dtype;
        place.device = read.device;
        for (int32_t i = 0; i < read.ndim; ++i) {
          place.sizes.push_back(read.shape[i]);
          place.strides.push_back(read.strides[i]);
        }
      } else {
        for (const py::str& name : attributes_) place.attributes.push_back(attribute(parameter, name));
        place.attributes.push_back(call(parameter, stride_));
      }
      places_.push_back(std::move(place));
    }
  }

  bool hold() const {
    if (cleared_) return false;
    for (const Place& place : places_) {
      PyObject* parameter = find(place);
      if (parameter == nullptr) return false;
      if (place.exchanged) {
        dlpack::Tensor read;
        if (!exchanged(parameter, read) || !same(place, read)) return false;
        continue;
      }
      if (address(parameter) != place.address) return false;
      for (size_t i = 0; i < attributes_.size(); ++i)
        if (!attribute(parameter, attributes_[i]).equal(place.attributes[i])) return false;
      if (!call(parameter, stride_).equal(place.attributes.back())) return false;
    }
    return true;
  }

  std::vector<size_t> addresses() const {
    std::vector<size_t> out;
    for (const Place& place : places_) out.push_back(place.address);
    return out;
  }

  size_t exchanged() const {
    size_t count = 0;
    for (const Place& place : places_) count += place.exchanged ? 1 : 0;
    return count;
  }

  template <class Visit>
  int visit(Visit call) const {  // as Watch::visit
    for (const Place& place : places_) {
      for (PyObject* each : {place.dict.ptr(), place.name.ptr()})
        if (const int result = call(each)) return result;
      for (const py::object& each : place.attributes)
        if (const int result = call(each.ptr())) return result;
    }
    return 0;
  }

  void clear() {  // as Watch::clear
    cleared_ = true;
    std::vector<Place>().swap(places_);
  }

 private:
  struct Place {
    py::dict dict;
    py::object name;
    size_t address = 0;
    bool exchanged = false;
    dlpack::DataType dtype = {};  // as the exchange API tells them
    dlpack::Device device = {};
    InlineVector<int64_t, 2> sizes, strides;
    std::vector<py::object> attributes;  // else: the values of attributes_, then stride()
  };
  using FromObject = decltype(dlpack::ExchangeApi::from_object);

  static FromObject from_object_of(const py::object& exchange) {
    if (!PyCapsule_IsValid(exchange.ptr(), dlpack::capsule_name)) return nullptr;  // None, or no such capsule
    const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(exchange.ptr(), dlpack::capsule_name));
    return api->version.major == dlpack::major_version ? api->from_object : nullptr;
  }

  bool exchanged(PyObject* parameter, dlpack::Tensor& out) const {
    out = {};
    if (from_object_ == nullptr) return false;
    if (from_object_(parameter, &out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  static size_t address(const dlpack::Tensor& read) { return reinterpret_cast<size_t>(read.data) + read.byte_offset; }

  static bool same(const Place& place, const dlpack::Tensor& read) {
    const dlpack::DataType &a = place.dtype, &b = read.dtype;
    return address(read) == place.address && static_cast<size_t>(read.ndim) == place.sizes.size() &&
           std::equal(place.sizes.begin(), place.sizes.end(), read.shape) &&
           std::equal(place.strides.begin(), place.strides.end(), read.strides) && a.code == b.code && a.bits == b.bits &&
           a.lanes == b.lanes && place.device.type == read.device.type && place.device.id == read.device.id;
  }

  static PyObject* find(const Place& place) {  // borrowed; null if there is none
    PyObject* parameter = PyDict_GetItemWithError(place.dict.ptr(), place.name.ptr());
    if (parameter == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return parameter == Py_None ? nullptr : parameter;
  }

  static py::object call(PyObject* parameter, const py::str& method) {
    PyObject* result = PyObject_CallMethodNoArgs(parameter, method.ptr());
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }

  size_t address(PyObject* parameter) const {
    const size_t value = PyLong_AsSize_t(call(parameter, data_ptr_).ptr());
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return value;
  }

  static py::object attribute(PyObject* parameter, const py::str& name) {
    PyObject* result = PyObject_GetAttr(parameter, name.ptr());
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }

  static py::str interned(const char* name) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)); }

  FromObject from_object_;
  std::vector<Place> places_;
  bool cleared_ = false;
  py::str data_ptr_ = interned("data_ptr"), stride_ = interned("stride");
  std::array<py::str, 3> attributes_ = {interned("shape"), interned("dtype"), interned("device")};
};

// For the class_ of a T that owns Python objects: the garbage collector visits and clears them.
template <class T>
py::custom_type_setup collected() {
  return py::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) -> int {
      Py_VISIT(Py_TYPE(self));
      if (!py::detail::is_holder_constructed(self)) return 0;  // __init__ has not finished
      return py::cast<const T&>(py::handle(self)).visit([&](PyObject* each) { return visit(each, arg); });
    };
    type.tp_clear = [](PyObject* self) -> int {
      if (py::detail::is_holder_constructed(self)) py::cast<T&>(py::handle(self)).clear();
      return 0;
    };
  });
}

}  // namespace

void bind_guard(py::module_& m) {
  py::class_<Watch>(m, "Watch", collected<Watch>(), "Whether dictionaries, classes and flags are unchanged.")
      .def("__init__",
           constructor<Watch, const py::list&, const py::list&, const py::list&, const py::list&, const py::list&, const py::list&>(),
           is_constructor(), py::arg("members"), py::arg("absent"), py::arg("sizes"), py::arg("classes"), py::arg("attributes"),
           py::arg("falsy"))
      .def("holds", &Watch::holds, "dict[key] is value; key absent; len(dict) == n; type(object) is type; type.name is value: all of them.")
      .def("quiet", &Watch::quiet, "Every watched flag exists and is false.");
  py::class_<Pointers>(m, "Pointers", collected<Pointers>(),
                       "What plans rely on of a model's parameters; each is (Module._parameters, name).")
      .def("__init__", constructor<Pointers, const py::list&, const py::object&>(), is_constructor(), py::arg("parameters"),
           py::arg("exchange") = py::none())
      .def("hold", &Pointers::hold, "Every parameter has the same address, sizes, strides, dtype and device as before.")
      .def("addresses", &Pointers::addresses, "The addresses when this was made.")
      .def("exchanged", py::overload_cast<>(&Pointers::exchanged, py::const_), "How many parameters are asked through the exchange API.");
}

}  // namespace bertfast
