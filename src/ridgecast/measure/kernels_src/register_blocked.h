// A register-blocked GEMM without matrix units. C = op(A) op(B); C is stored with m contiguous
// (n x m as an array), groups run along m (x), n (y) and the batch (z).
//
// A group of MDIMC x NDIMC threads makes MWG x NWG outputs, each thread (MWG / MDIMC) x
// (NWG / NDIMC) of them in registers, in k steps of KWG of which KWI are unrolled. SA, SB stage
// the operand in shared memory, loaded by the threads arranged as MDIMA or NDIMB along m or n and
// the rest along k; without staging every thread reads what it needs through the L1. VWM, VWN are
// the elements of a load along m and n. STRM, STRN = 0: a thread's vectors lie side by side; 1:
// they are strided, so that neighbouring threads read neighbouring vectors.
// EDGE_M, EDGE_N, EDGE_K = 1 where the size is no multiple of the tile; WHOLE_M, WHOLE_N = 1
// where it is a multiple of the vector, so that a vector lies inside or outside and is aligned.

#define THREADS (MDIMC * NDIMC)
#define MVECTORS (MWG / VWM)          // vectors of a k row of the tile of A
#define NVECTORS (NWG / VWN)
#define MOWN (MVECTORS / MDIMC)       // of them, one thread's
#define NOWN (NVECTORS / NDIMC)
#define KDIMA (THREADS / MDIMA)       // threads along k that load A
#define KDIMB (THREADS / NDIMB)

#if STRM
#define OWN_M(i) ((i) * MDIMC + LOCAL_X)
#else
#define OWN_M(i) (LOCAL_X * MOWN + (i))
#endif
#if STRN
#define OWN_N(i) ((i) * NDIMC + LOCAL_Y)
#else
#define OWN_N(i) (LOCAL_Y * NOWN + (i))
#endif

#define INSIDE_M(row) (!EDGE_M || (row) < m)
#define INSIDE_N(column) (!EDGE_N || (column) < n)
#define INSIDE_K(p) (!EDGE_K || (p) < k)

#if VWM == 1
#define VWM_NATIVE REAL
#else
#define VWM_NATIVE PASTE(REAL, VWM)
#endif
#if VWN == 1
#define VWN_NATIVE REAL
#else
#define VWN_NATIVE PASTE(REAL, VWN)
#endif
VECTOR(vector_m, VWM);
VECTOR(vector_n, VWN);

// VWM elements of column p of op(A) from `row` on, zeros outside the matrix
DEVICE vector_m load_a(GLOBAL const REAL *a, const int m, const int k, const int row, const int p) {
    vector_m out;
#if TRANS_A && WHOLE_M
    if (INSIDE_M(row) && INSIDE_K(p)) {
        out = *(GLOBAL const vector_m *)(a + A_AT(row, p));
    } else {
#pragma unroll
        for (int w = 0; w < VWM; w++) out.s[w] = TO_REAL(0);
    }
#else
#pragma unroll
    for (int w = 0; w < VWM; w++)
        out.s[w] = INSIDE_M(row + w) && INSIDE_K(p) ? a[A_AT(row + w, p)] : TO_REAL(0);
#endif
    return out;
}

// VWN elements of row p of op(B) from `column` on, zeros outside the matrix
DEVICE vector_n load_b(GLOBAL const REAL *b, const int n, const int k, const int p,
                       const int column) {
    vector_n out;
#if !TRANS_B && WHOLE_N
    if (INSIDE_N(column) && INSIDE_K(p)) {
        out = *(GLOBAL const vector_n *)(b + B_AT(p, column));
    } else {
#pragma unroll
        for (int w = 0; w < VWN; w++) out.s[w] = TO_REAL(0);
    }
#else
#pragma unroll
    for (int w = 0; w < VWN; w++)
        out.s[w] = INSIDE_N(column + w) && INSIDE_K(p) ? b[B_AT(p, column + w)] : TO_REAL(0);
#endif
    return out;
}

// The MWG x KWG tile of A from (row0, k0) on into shared memory, m contiguous. Threads run first
// along the dimension that is contiguous in memory.
#if SA
DEVICE void stage_a(LOCAL vector_m *tile, GLOBAL const REAL *a, const int m, const int k,
                    const int row0, const int k0) {
    const int thread = LOCAL_Y * MDIMC + LOCAL_X;
    const int at_m = TRANS_A ? thread % MDIMA : thread / KDIMA;
    const int at_k = TRANS_A ? thread / MDIMA : thread % KDIMA;
#pragma unroll
    for (int p = 0; p < KWG; p += KDIMA) {
#pragma unroll
        for (int i = 0; i < MVECTORS / MDIMA; i++) {
            const int v = STRM ? i * MDIMA + at_m : at_m * (MVECTORS / MDIMA) + i;
            tile[(p + at_k) * MVECTORS + v] = load_a(a, m, k, row0 + v * VWM, k0 + p + at_k);
        }
    }
}
#endif

#if SB
DEVICE void stage_b(LOCAL vector_n *tile, GLOBAL const REAL *b, const int n, const int k,
                    const int k0, const int column0) {
    const int thread = LOCAL_Y * MDIMC + LOCAL_X;
    const int at_n = TRANS_B ? thread / KDIMB : thread % NDIMB;
    const int at_k = TRANS_B ? thread % KDIMB : thread / NDIMB;
#pragma unroll
    for (int p = 0; p < KWG; p += KDIMB) {
#pragma unroll
        for (int i = 0; i < NVECTORS / NDIMB; i++) {
            const int v = STRN ? i * NDIMB + at_n : at_n * (NVECTORS / NDIMB) + i;
            tile[(p + at_k) * NVECTORS + v] = load_b(b, n, k, k0 + p + at_k, column0 + v * VWN);
        }
    }
}
#endif

// One vector of outputs of column `column` from `row` on
DEVICE void store_c(GLOBAL REAL *c, const int m, const int n, const int row, const int column,
                    const ACC *sums) {
    if (!INSIDE_N(column)) return;
#if WHOLE_M
    if (!INSIDE_M(row)) return;
    vector_m out;
#pragma unroll
    for (int w = 0; w < VWM; w++) out.s[w] = TO_REAL(sums[w]);
    *(GLOBAL vector_m *)(c + column * m + row) = out;
#else
#pragma unroll
    for (int w = 0; w < VWM; w++)
        if (INSIDE_M(row + w)) c[column * m + row + w] = TO_REAL(sums[w]);
#endif
}

KERNEL(MDIMC, NDIMC) register_blocked(ARGUMENTS) {
#if SA
    SHARED vector_m tile_a[KWG * MVECTORS];
#endif
#if SB
    SHARED vector_n tile_b[KWG * NVECTORS];
#endif
    const int row0 = GROUP_X * MWG, column0 = GROUP_Y * NWG;
    NEXT_BATCH();

    ACC sum[NOWN * VWN][MOWN * VWM];
#pragma unroll
    for (int j = 0; j < NOWN * VWN; j++)
#pragma unroll
        for (int i = 0; i < MOWN * VWM; i++) sum[j][i] = 0;

    for (int k0 = 0; k0 < k; k0 += KWG) {
#if SA
        stage_a(tile_a, a, m, k, row0, k0);
#endif
#if SB
        stage_b(tile_b, b, n, k, k0, column0);
#endif
#if SA || SB
        BARRIER();
#endif
        for (int group = 0; group < KWG; group += KWI) {
#pragma unroll
            for (int inner = 0; inner < KWI; inner++) {
                const int p = group + inner;
                vector_m own_a[MOWN];
                vector_n own_b[NOWN];
#pragma unroll
                for (int i = 0; i < MOWN; i++)
#if SA
                    own_a[i] = tile_a[p * MVECTORS + OWN_M(i)];
#else
                    own_a[i] = load_a(a, m, k, row0 + OWN_M(i) * VWM, k0 + p);
#endif
#pragma unroll
                for (int j = 0; j < NOWN; j++)
#if SB
                    own_b[j] = tile_b[p * NVECTORS + OWN_N(j)];
#else
                    own_b[j] = load_b(b, n, k, k0 + p, column0 + OWN_N(j) * VWN);
#endif
#pragma unroll
                for (int j = 0; j < NOWN * VWN; j++)
#pragma unroll
                    for (int i = 0; i < MOWN * VWM; i++)
                        sum[j][i] += TO_ACC(own_a[i / VWM].s[i % VWM]) *
                                     TO_ACC(own_b[j / VWN].s[j % VWN]);
            }
        }
#if SA || SB
        BARRIER();
#endif
    }
#pragma unroll
    for (int j = 0; j < NOWN * VWN; j++)
#pragma unroll
        for (int i = 0; i < MOWN; i++)
            store_c(c, m, n, row0 + OWN_M(i) * VWM, column0 + OWN_N(j / VWN) * VWN + j % VWN,
                    &sum[j][i * VWM]);
}
