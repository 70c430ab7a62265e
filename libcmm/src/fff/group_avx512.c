#include "../simd/avx512.h"
#include "group.inl"
