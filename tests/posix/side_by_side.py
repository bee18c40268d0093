import sys, time, os
from tests.mounted import workspace
from tests.posix.grounds import ext4, mount, DirectoryGround
from tests.posix.machine import Counts, run_sequences

with workspace() as place, ext4(place) as base:
    counts = Counts()
    def go(ground):
        b = base/"e"; b.mkdir(exist_ok=True)
        t=time.perf_counter()
        try: run_sequences(b, ground, counts, first_seed=int(sys.argv[2]), sequences=int(sys.argv[3]))
        finally:
            d=time.perf_counter()-t
            print(counts.shown(), f"{counts.steps/d:.0f}/s")
            for k,v in sorted(counts.calls.items()): print(f"  {k} {v[0]} ok {v[1]} refused")
    if sys.argv[1]=="native":
        (base/"n").mkdir(); (base/"c").mkdir()
        go(DirectoryGround(base/"n", base/"c"))
    else:
        with mount(place) as g: go(g)
