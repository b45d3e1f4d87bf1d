/* A simulator in C that writes a shard with plain HDF5: a walker that is pushed about, and falls off when it strays.
 *
 *     cc -O2 simulator.c -o simulator $(pkg-config --cflags --libs hdf5) -lm
 *     ROSE_HPC_SHARD=shard.h5 ROSE_HPC_SEED=1 ./simulator 0.2 1000
 *
 * What it writes is all that a shard needs: datasets of one length at the root, one row for each step. Digests and
 * statistics are added when the shard is sealed. HDF5's default layout, contiguous, is the one that is sealed in place.
 */
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { WIDTH = 2 }; /* an observation: position and speed */

static double uniform(unsigned long long *state) /* in [0, 1): xorshift64* */
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (double)((*state * 2685821657736338717ULL) >> 11) / 9007199254740992.0;
}

static hid_t boolean(void) /* how h5py and PyTables spell it */
{
    hid_t type = H5Tenum_create(H5T_STD_I8LE);
    signed char no = 0, yes = 1;
    H5Tenum_insert(type, "FALSE", &no);
    H5Tenum_insert(type, "TRUE", &yes);
    return type;
}

static int write_column(hid_t file, const char *name, hid_t type, int rank, const hsize_t *shape, const void *rows)
{
    hid_t space = H5Screate_simple(rank, shape, NULL);
    hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    herr_t bad = dataset < 0 ? -1 : H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows);
    if (dataset >= 0)
        bad |= H5Dclose(dataset);
    H5Sclose(space);
    return bad < 0;
}

int main(int argc, char **argv)
{
    const char *path = getenv("ROSE_HPC_SHARD"), *seed = getenv("ROSE_HPC_SEED");
    double push = argc > 1 ? atof(argv[1]) : 0.2;
    hsize_t shape[2] = {argc > 2 ? strtoull(argv[2], NULL, 10) : 1000, WIDTH}, rows = shape[0];
    if (!path || !rows) {
        fprintf(stderr, "usage: ROSE_HPC_SHARD=shard.h5 ROSE_HPC_SEED=1 %s [push] [rows]\n", argv[0]);
        return 2;
    }
    unsigned long long state = 0x9E3779B97F4A7C15ULL ^ (seed ? strtoull(seed, NULL, 10) + 1 : 1);
    float(*before)[WIDTH] = calloc(rows, sizeof *before), (*after)[WIDTH] = calloc(rows, sizeof *after);
    int *action = calloc(rows, sizeof *action);
    double *reward = calloc(rows, sizeof *reward);
    signed char *fallen = calloc(rows, 1), *timeout = calloc(rows, 1);
    if (!before || !after || !action || !reward || !fallen || !timeout)
        return 1;

    float position = 0, speed = 0;
    for (hsize_t row = 0, step = 0; row < rows; row++) {
        before[row][0] = position, before[row][1] = speed;
        action[row] = uniform(&state) < 0.5;
        speed += (float)((action[row] ? push : -push) + 0.1 * (uniform(&state) - 0.5));
        position += speed;
        after[row][0] = position, after[row][1] = speed;
        reward[row] = 1.0;
        fallen[row] = fabsf(position) > 2;
        timeout[row] = !fallen[row] && ++step == 200;
        if (fallen[row] || timeout[row])
            position = speed = 0, step = 0;
    }

    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), flag = boolean();
    int bad = file < 0 || write_column(file, "observations", H5T_IEEE_F32LE, 2, shape, before)
              || write_column(file, "next_observations", H5T_IEEE_F32LE, 2, shape, after)
              || write_column(file, "actions", H5T_STD_I32LE, 1, shape, action)
              || write_column(file, "rewards", H5T_IEEE_F64LE, 1, shape, reward)
              || write_column(file, "terminations", flag, 1, shape, fallen)
              || write_column(file, "truncations", flag, 1, shape, timeout);
    if (file >= 0)
        bad |= H5Fclose(file) < 0;
    return bad ? 1 : 0; /* anything but 0: the shard is not published */
}
