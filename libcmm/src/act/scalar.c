#include "../simd/scalar.h"
#include "loops.inl"
