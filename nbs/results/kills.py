r"""Is a run that was killed the run that it would have been? Hundreds of tiny runs, `kill -9` at random moments.

Each case of `tests/broken_off.py` (every objective alone, beside a task and beside labels; tasks; optimizers,
callbacks, loaders) is run once without a break. Then it is run again in a process that saves every two batches and is
killed at a random moment, `--kills` times, each time going on in a new process, which begins with other random numbers;
at last it may come to its end. Weights, optimizer, heads, teacher, memories, losses and columns must be the same bits.
With `--writing` files are written slowly, in halves, and the kill comes while one is being written.

One JSON file a case, restartable; several copies share the work:

    OMP_NUM_THREADS=1 python nbs/results/kills.py
    OMP_NUM_THREADS=1 python nbs/results/kills.py --writing
    python nbs/results/kills.py --table
"""
import os, random, signal, sys, tempfile, time, multiprocessing
from pathlib import Path
root = Path(__file__).resolve().parents[2]
for o in (Path(__file__).parent, root/'tests'): sys.path.insert(0, str(o))
from fastcore.script import *

steps = 2 # Batches between two states

def child(case, folder, seed, count, out, slow):
    "Carry on a run; count its batches, write its end"
    import torch
    torch.set_num_threads(1)
    from broken_off import run, end, Callback
    from fastai_contrastive.checkpoints import Checkpoints, write_state
    if not Checkpoints(folder).files: seed = 1 # Nothing to go on from: the run begins as it did
    class Count(Callback):
        order = -100
        def before_batch(self): count.value += self.training
    if slow: write_slowly()
    learn = run(case, folder, seed, [Count()], steps=steps)
    write_state(end(learn), out)

def write_slowly():
    "Halves of files, and a rest before each is renamed"
    write,text,replace = Path.write_bytes,Path.write_text,os.replace
    def halves(self, b):
        if self.name[0]!='.': return write(self, b)
        with open(self, 'wb') as f:
            for o in (b[:len(b)//2],b[len(b)//2:]): f.write(o); f.flush(); time.sleep(.1)
    def slowly(a, b): time.sleep(.1); replace(a, b)
    Path.write_bytes,os.replace = halves,slowly
    Path.write_text = lambda self, s: halves(self, s.encode()) if self.name[0]=='.' else text(self, s)

def start(case, folder, seed, out, slow=False):
    from forked import one_thread
    ctx = multiprocessing.get_context('forkserver')
    count = ctx.Value('i', 0)
    p = ctx.Process(target=child, args=(case, str(folder), seed, count, str(out), slow))
    with one_thread(): p.start()
    p.count = count # Or it is gone before the process has it
    return p

def ended(p):
    p.join()
    if p.exitcode: raise RuntimeError(f'a run ended with status {p.exitcode}')

def head(folder):
    "What a process that comes now would go on from: fit, epoch, batch"
    from fastai_contrastive.checkpoints import Checkpoints
    got = Checkpoints(folder).read(say=lambda s: None)
    return [got[1][k] for k in ('fit','epoch','n','done')] if got else None

def killed(case, folder, seed, out, rng, slow, least=1):
    "Start, kill: where the next one goes on, whether a file was being written; None if the run had come to its end"
    p = start(case, folder, seed, out, slow)
    k,late = rng.randint(least, 6),rng.random()*(.4 if slow else .2)
    writing = lambda: any(folder.glob('.[0-9]*'))
    while p.is_alive() and (p.count.value<k or (slow and not writing())): time.sleep(.001)
    time.sleep(late)
    if not p.is_alive(): return
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    return dict(after=k, writing=writing(), on=head(folder))

def broken(case, folder, n, seed, rng, slow, least):
    "A run that is killed up to `n` times: the kills, and how it ended"
    from fastai_contrastive.checkpoints import read_state
    kills,got = [],True
    while len(kills)<n and got:
        got = killed(case, folder/'run', seed+len(kills), folder/'end', rng, slow, least)
        if got: kills.append(got)
    if got: ended(start(case, folder/'run', seed+99, folder/'end'))
    return kills,read_state(folder/'end')[0]

def case_row(case, seed, n_kills, slow, least=1):
    "One case: a whole run, and one that is killed again and again; where it ended before a kill came, one more"
    from fastai_contrastive.checkpoints import read_state
    from broken_off import unequal
    rng = random.Random(f'{case} {seed}')
    with tempfile.TemporaryDirectory() as d:
        d,kills,diff,t = Path(d),[],[],time.time()
        ended(start(case, d/'whole'/'run', 1, d/'whole_end'))
        whole = read_state(d/'whole_end')[0]
        for i in range(1,9):
            some,end = broken(case, d/f'broken{i}', n_kills-len(kills), 100*i, rng, slow, least)
            kills,diff = kills+some,diff+unequal(whole, end)
            if len(kills)==n_kills: break
    return dict(case=case, seed=seed, slow=slow, kills=kills, unequal=diff[:9], took=round(time.time()-t, 1))

def table(out):
    "Counts, over all rows"
    from shared import read_rows
    rows = read_rows(out)
    mid = lambda k: k['on'] and k['on'][2]>0
    lines = ['| runs | kills | from the middle of an epoch | while a file was written | ends that differ |',
             '| --- '*5+'|']
    kinds = {'an objective alone':lambda c: c in objectives(), 'beside a task':lambda c: c[:5]=='task+',
             'beside labels':lambda c: c[:7]=='labels+'}
    kinds['tasks, optimizers, callbacks, loaders'] = lambda c: not any(f(c) for k,f in kinds.items() if k[0]!='t')
    for name,f in [*kinds.items(), ('all',lambda c: True)]:
        rs = [r for r in rows if f(r['case'])]
        ks = [k for r in rs for k in r['kills']]
        counts = sum(bool(mid(k)) for k in ks),sum(k['writing'] for k in ks),sum(bool(r['unequal']) for r in rs)
        lines.append(f'| {name}: {len(rs)} | {len(ks)} | '+' | '.join(map(str, counts))+' |')
    return '\n'.join(lines)

def objectives():
    from broken_off import objectives
    return objectives

@call_parse
def main(
    kills:int=3, # In each run
    writing:store_true=False, # Kill while a file is being written
    only:str='', # Cases, separated by commas; all if empty
    seed:int=0, # Of the moments
    out:str='nbs/results/kills', # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing of the kills, and print the table."
    show = globals()['table']
    if table: return print(show(out))
    import forked
    forked.warm.append('broken_off')
    from shared import run_missing
    from broken_off import cases
    from fastai_contrastive.recipes import provenance
    from shared import command
    some = ['simclr','labels+byol','task+moco','dl','two terms','workers'] # Slow writing, a few are enough
    names = only.split(',') if only else some if writing else cases()
    def run(name, s):
        return {**case_row(name.removesuffix(' writing'), s, kills, writing), **provenance(), 'command':command()}
    todo = [(f'{o} writing' if writing else o,seed) for o in names]
    run_missing(todo, out, run)
    print(show(out))
