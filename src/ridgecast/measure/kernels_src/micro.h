// Micro-benchmarks of what a device can do at all. They take the arguments of the other kernels;
// m is the number of 16-byte words of an array. Groups are GROUP_THREADS wide and run along x.

#define WORDS_A ((GLOBAL const word *)a)
#define WORDS_B ((GLOBAL const word *)b)
#define WORDS_C ((GLOBAL word *)c)

// c = a: reads one array, writes one. A thread moves PER_THREAD words, a group's width apart.
KERNEL(GROUP_THREADS, 1) copy(ARGUMENTS) {
    const int first = GROUP_X * GROUP_THREADS * PER_THREAD + LOCAL_X;
#pragma unroll
    for (int u = 0; u < PER_THREAD; u++) {
        const int i = first + u * GROUP_THREADS;
        if (i < m) WORDS_C[i] = WORDS_A[i];
    }
}

// c = 3 a + b: reads two arrays, writes one (McCalpin 1995, STREAM triad).
KERNEL(GROUP_THREADS, 1) triad(ARGUMENTS) {
    const int first = GROUP_X * GROUP_THREADS * PER_THREAD + LOCAL_X;
#pragma unroll
    for (int u = 0; u < PER_THREAD; u++) {
        const int i = first + u * GROUP_THREADS;
        if (i < m) WORDS_C[i] = WORD_SCALE_ADD(3.0f, WORDS_A[i], WORDS_B[i]);
    }
}

// Reads array a n times and leaves each thread's sum in c. All groups together walk the array;
// each pass starts k words further on, so that a group does not find its words in its own L1.
KERNEL(GROUP_THREADS, 1) l2_read(ARGUMENTS) {
    const int thread = GROUP_X * GROUP_THREADS + LOCAL_X;
    const int stride = GROUPS_X * GROUP_THREADS;
    word sum = WORD_ZERO;
    int shift = 0;
    for (int pass = 0; pass < n; pass++) {
#pragma unroll 4
        for (int i = thread; i < m; i += stride) {
            const int at = i + shift < m ? i + shift : i + shift - m;
            const word got = LOAD_BELOW_L1(WORDS_A, at);
            sum = WORD_ADD(sum, got);
        }
        shift = (shift + k) % m;
    }
    c[thread] = WORD_SUM(sum);
}

// What a launch costs: one thread writes one number, so that the launch is seen to have happened.
KERNEL(1, 1) launch(ARGUMENTS) { c[0] = 1; }
