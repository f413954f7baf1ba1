#include "gemm.cuh"

// y_b = a_b·c_b for a_b [m, k], c_b [k, n], each given as it is (n) or transposed (t). Blocks: tiles of rows and columns of every product.
template <bool A_T, bool C_T>
__device__ __forceinline__ void products(const REAL* a, const REAL* c, REAL* y, int add, int m, int n, int k, int math) {
    REAL* shared = shared_memory();
    int down = tiles(m, Small::BM), across = tiles(n, Small::BN), tile = blockIdx.x % (down * across);
    long long batch = blockIdx.x / (down * across);
    int row = tile / across * Small::BM, column = tile % across * Small::BN;
    Rows<false> left(a + batch * m * k, A_T ? k : m, A_T ? m : k, A_T ? m : k);
    Rows<false> right(c + batch * k * n, C_T ? n : k, C_T ? k : n, C_T ? k : n);
    product<Small, !A_T, C_T>(math, left, right, row, column, 0, k, shared);
    write_tile<Small>(shared, row, column, y + batch * m * n, m, n, add, [](int, int, REAL sum) { return sum; });
}

KERNEL __launch_bounds__(256) matmul_nn(const REAL* __restrict__ a, const REAL* __restrict__ c, REAL* __restrict__ y, int add, int m, int n,
                                        int k, int math) {
    products<false, false>(a, c, y, add, m, n, k, math);
}

KERNEL __launch_bounds__(256) matmul_nt(const REAL* __restrict__ a, const REAL* __restrict__ c, REAL* __restrict__ y, int add, int m, int n,
                                        int k, int math) {
    products<false, true>(a, c, y, add, m, n, k, math);
}

KERNEL __launch_bounds__(256) matmul_tn(const REAL* __restrict__ a, const REAL* __restrict__ c, REAL* __restrict__ y, int add, int m, int n,
                                        int k, int math) {
    products<true, false>(a, c, y, add, m, n, k, math);
}
