// The .cu files, compiled for the host.
#include "tests/support/cuda_on_host.h"
// After it, which they need.
#include "rmoe/kernels/cuda/cell.cu"
#include "rmoe/kernels/cuda/cross_entropy.cu"
#include "rmoe/kernels/cuda/experts.cu"
#include "rmoe/kernels/cuda/gate.cu"
#include "rmoe/kernels/cuda/norm.cu"
#include "rmoe/kernels/cuda/sort.cu"
#include "rmoe/kernels/cuda/span_attention.cu"
#include "rmoe/kernels/cuda/table.cu"
