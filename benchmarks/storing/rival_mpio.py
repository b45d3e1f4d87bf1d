"""One bank of many shards with h5py and MPI-IO, for Debian's python3-h5py-mpi: mpiexec -n N python3 THIS BANK SHARD...

Every rank reads its shards and takes part in every collective write, with nothing where it has none left (h5py#965).
The first rank prints the seconds.
"""

import sys
import time

from h5py import _debian_h5py_mpi as h5py
from mpi4py import MPI

bank, shards = sys.argv[1], sys.argv[2:]
comm = MPI.COMM_WORLD
comm.Barrier()
start = time.perf_counter()
files = {number: h5py.File(shards[number], "r") for number in range(comm.rank, len(shards), comm.size)}
rows = [0] * len(shards)
for number, file in files.items():
    rows[number] = len(next(iter(file.values())))
rows = comm.allreduce(rows, lambda a, b: [x + y for x, y in zip(a, b)])  # noqa: B905 - for the Python of Debian
offsets = [sum(rows[:number]) for number in range(len(shards) + 1)]
model = [(name, column.shape[1:], column.dtype) for name, column in files[comm.rank].items()] if files else None
model = comm.bcast(model)
with h5py.File(bank, "w", driver="mpio", comm=comm) as target:
    for name, shape, dtype in model:
        column = target.create_dataset(name, (offsets[-1], *shape), dtype)
        for first in range(0, len(shards), comm.size):
            number = first + comm.rank
            with column.collective:
                if number in files:
                    column[offsets[number] : offsets[number + 1]] = files[number][name][:]
                else:
                    column[:0] = column[:0]
comm.Barrier()
if comm.rank == 0:
    print(time.perf_counter() - start)
