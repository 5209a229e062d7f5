// Where an element of op(A) (m x k) and op(B) (k x n) lies; all arrays are row-major as stored.
// TRANS_A = 1 stores A as k x m, TRANS_B = 1 stores B as n x k. Group z is the batch index.

#define ARGUMENTS                                                                 \
    const int m, const int n, const int k, GLOBAL const REAL *RESTRICT a, \
        GLOBAL const REAL *RESTRICT b, GLOBAL REAL *RESTRICT c

#if TRANS_A
#define A_AT(row, p) ((p) * m + (row))
#else
#define A_AT(row, p) ((row) * k + (p))
#endif

#if TRANS_B
#define B_AT(p, column) ((column) * k + (p))
#else
#define B_AT(p, column) ((p) * n + (column))
#endif

#define NEXT_BATCH()                 \
    a += (size_t)GROUP_Z * m * k;    \
    b += (size_t)GROUP_Z * k * n;    \
    c += (size_t)GROUP_Z * m * n
