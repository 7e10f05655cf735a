// What the native checks share.
#pragma once

#include <string>

// Counts a check; says what failed.
void report(bool good, const std::string& what);

// Runs the C++ host with each allocation failing in turn.
void check_allocation_failures();
