#include "../simd/neon.h"
#include "walk.inl"
