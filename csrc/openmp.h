// torch's OpenMP threads across a fork.
#pragma once

namespace bertfast {

// From now on a thread that forks ends its OpenMP threads first; parent and child start new ones when they need them. libgomp lacks this:
// in the child the team is on record, its threads do not exist, and the next parallel region waits for them for ever. False where it is not
// needed or cannot be done: the OpenMP runtime in use is another one, which begins anew in a child, or there is none. Not to be called in a
// child whose parent may have used OpenMP: there it would wait for the parent's threads.
bool end_openmp_threads_before_forks();

}  // namespace bertfast
