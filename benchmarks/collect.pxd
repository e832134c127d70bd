cdef extern from *:
    """
    #include <valgrind/callgrind.h>
    static inline void toggle_collection(void) { CALLGRIND_TOGGLE_COLLECT; }
    """
    void toggle_collection() noexcept nogil
