#include "../simd/neon.h"
#include "loops.inl"
