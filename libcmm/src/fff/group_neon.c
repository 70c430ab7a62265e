#include "../simd/neon.h"
#include "group.inl"
