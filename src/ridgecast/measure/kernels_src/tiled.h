// The naive GEMM with square tiles in shared memory: TILE x TILE threads, one output each.
// C (m x n, row-major) = op(A) op(B). Groups run along n (x), m (y) and the batch (z).
//
// An operand that is stored transposed is read along its own rows and turned in shared memory,
// whose rows are then one element longer, so that a column does not sit in one bank.

KERNEL(TILE, TILE) tiled(ARGUMENTS) {
    SHARED REAL tile_a[TILE][TILE + TRANS_A];
    SHARED REAL tile_b[TILE][TILE + TRANS_B];
    const int x = LOCAL_X, y = LOCAL_Y;
    const int row0 = GROUP_Y * TILE, column0 = GROUP_X * TILE;
    NEXT_BATCH();

    ACC sum = 0;
    for (int k0 = 0; k0 < k; k0 += TILE) {
#if TRANS_A
        const int row_a = row0 + x, p_a = k0 + y;
        tile_a[x][y] = row_a < m && p_a < k ? a[A_AT(row_a, p_a)] : TO_REAL(0);
#else
        const int row_a = row0 + y, p_a = k0 + x;
        tile_a[y][x] = row_a < m && p_a < k ? a[A_AT(row_a, p_a)] : TO_REAL(0);
#endif
#if TRANS_B
        const int column_b = column0 + y, p_b = k0 + x;
        tile_b[x][y] = column_b < n && p_b < k ? b[B_AT(p_b, column_b)] : TO_REAL(0);
#else
        const int column_b = column0 + x, p_b = k0 + y;
        tile_b[y][x] = column_b < n && p_b < k ? b[B_AT(p_b, column_b)] : TO_REAL(0);
#endif
        BARRIER();
#pragma unroll
        for (int p = 0; p < TILE; p++) sum += TO_ACC(tile_a[y][p]) * TO_ACC(tile_b[p][x]);
        BARRIER();
    }
    const int row = row0 + y, column = column0 + x;
    if (row < m && column < n) c[row * n + column] = TO_REAL(sum);
}
