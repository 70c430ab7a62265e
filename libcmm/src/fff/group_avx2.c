#include "../simd/avx2.h"
#include "group.inl"
