"""What the library asks of the process and the machine: the C++ module, threads, memory pages, devices and dtypes, fast config reads.

    native.py         the C++ module _C, checked against the sources it was built from
    threads.py        set_num_threads, get_num_threads
    huge_pages.py     huge_pages
    devices.py        devices and dtypes as users name them
    config_access.py  reading a transformers config at low cost
    model_types.py    models as types

Any package may import it; it imports torch and _C alone.
"""
