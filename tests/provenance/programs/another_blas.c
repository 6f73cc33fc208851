/* A BLAS that sums from the end: as exact as any other, and other bits. */
static float at(const float *x, long ld, long row, long col, int t) { return t ? x[col + row * ld] : x[row + col * ld]; }
void sgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k, const float *alpha, const float *a,
            const int *lda, const float *b, const int *ldb, const float *beta, float *c, const int *ldc) {
  for (int j = 0; j < *n; j++)
    for (int i = 0; i < *m; i++) {
      float sum = 0, *out = c + i + (long)j * *ldc;
      for (int p = *k - 1; p >= 0; p--)
        sum += at(a, *lda, i, p, (*ta | 32) != 'n') * at(b, *ldb, p, j, (*tb | 32) != 'n');
      *out = *alpha * sum + (*beta ? *beta * *out : 0);
    }
}
