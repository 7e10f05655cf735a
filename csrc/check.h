// BF_CHECK(condition, parts...) throws std::invalid_argument, which pybind11 turns into ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace bertfast {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace bertfast

#define BF_CHECK(condition, ...)                     \
  do {                                               \
    if (!(condition)) ::bertfast::fail(__VA_ARGS__); \
  } while (false)
