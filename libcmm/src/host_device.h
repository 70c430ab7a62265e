/* CMM_HD: what stands before a function that C, C++ and CUDA compile, CUDA for the CPU and for the GPU. */
#ifndef CMM_HOST_DEVICE_H
#define CMM_HOST_DEVICE_H

#if defined(__CUDACC__)
#define CMM_HD __host__ __device__
#else
#define CMM_HD
#endif

#endif
