// MPI_Allreduce(SUM, float): its time between processes of this host. usage: mpi_allreduce BYTES...
//
// Measured as our own: the buffer rewritten and barriers passed before each timed call, in place, the mean over calls and
// ranks, the median over blocks. Rank 0 prints one JSON object: bytes -> microseconds.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCKS = 31 };
static const long BLOCK_BYTES = 16 << 20;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double measure(int rank, int world, long bytes, float *data) {
    long length = bytes / 4, calls = BLOCK_BYTES / bytes;
    calls = calls < 2 ? 2 : calls > 100 ? 100 : calls;
    double blocks[BLOCKS];
    for (int block = 0; block <= BLOCKS; block++) {
        double total = 0;
        for (long call = 0; call < calls; call++) {
            for (long i = 0; i < length; i++) data[i] = (float)(i % 256) + (float)(rank + call % 16);
            MPI_Barrier(MPI_COMM_WORLD);
            MPI_Barrier(MPI_COMM_WORLD);
            double start = MPI_Wtime();
            MPI_Allreduce(MPI_IN_PLACE, data, length, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            total += MPI_Wtime() - start;
        }
        for (long i = 0; i < length; i++) {
            float wanted = ((float)(i % 256) + (float)((calls - 1) % 16)) * world + world * (world - 1) / 2;
            if (data[i] != wanted) MPI_Abort(MPI_COMM_WORLD, 1);
        }
        double mean = total / calls / world, sum = 0;
        MPI_Allreduce(&mean, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        if (block) blocks[block - 1] = sum;
    }
    qsort(blocks, BLOCKS, sizeof *blocks, ascending);
    return blocks[BLOCKS / 2] * 1e6;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, world;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    long largest = 0;
    for (int n = 1; n < argc; n++) largest = atol(argv[n]) > largest ? atol(argv[n]) : largest;
    float *data = malloc(largest + 1);
    if (rank == 0) printf("{");
    for (int n = 1; n < argc; n++) {
        double us = measure(rank, world, atol(argv[n]), data);
        if (rank == 0) printf("%s\"%s\": %.2f", n > 1 ? ", " : "", argv[n], us);
    }
    if (rank == 0) printf("}\n");
    free(data);
    MPI_Finalize();
    return 0;
}
