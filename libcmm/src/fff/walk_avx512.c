#include "../simd/avx512.h"
#include "walk.inl"
