// Grid-wide barriers. Compiled once to ../ptx/grid.ptx, see README.md.
#include <cooperative_groups.h>

extern "C" __global__ void rotate(int* data, int rounds) {
  cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  int i = grid.thread_rank(), n = grid.size();
  for (int r = 0; r < rounds; ++r) {
    int next = data[(i + 1) % n];
    grid.sync();
    data[i] = next + 1;
    grid.sync();
  }
}
