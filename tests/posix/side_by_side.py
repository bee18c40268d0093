import sys, time, os
from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable
from tests.mounted import workspace
from tests.posix.grounds import ext4, mount, DirectoryGround
from tests.posix.machine import Counts, run_sequences

with workspace() as place, ext4(place) as base:
    counts = Counts()
    counts.survey = {} if 'survey' in sys.argv else None
    def go(ground):
        b = base/"e"; b.mkdir(exist_ok=True)
        t=time.perf_counter()
        first, last, n = map(int, sys.argv[2:5])
        try:
            for s in range(first, last+1):
                try: run_sequences(b, ground, counts, first_seed=s, sequences=n)
                except (FlakyStrategyDefinition, Unsatisfiable) as e: print(repr(e)[:100])
        finally:
            d=time.perf_counter()-t
            print(counts.shown(), f"{counts.steps/d:.0f}/s")
            for k,(n,v) in (counts.survey or {}).items(): print(n,k,"\n   ",v[:20000])
            if 'calls' in sys.argv:
              for k,v in sorted(counts.calls.items()): print(f"  {k} {v[0]} ok {v[1]} refused")
    if sys.argv[1]=="native":
        (base/"n").mkdir(); (base/"c").mkdir()
        go(DirectoryGround(base/"n", base/"c"))
    else:
        with mount(place) as g: go(g)
