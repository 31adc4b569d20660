"What the experiments share: images resized once, rows that are run once, and the cells of their tables"
import fcntl, os, shlex, sys, time
from contextlib import contextmanager
from filelock import FileLock
from fastai.vision.all import *
from fastai_contrastive.all import *
from fastai_contrastive.recipes import write_row

def small(name, short_side, size=64):
    "The data set for images of `size`, resized once so that its shorter side is `short_side`; 0 leaves it as it is"
    path = data_path(name, size)
    if not short_side: return path
    dest = path.parent/f'{path.name}-short{short_side}'
    with FileLock(dest.with_name(f'.{dest.name}.lock')): # Whoever comes second finds it done
        if dest.exists(): return dest
        tmp = dest.with_name(f'.{dest.name}.{os.getpid()}')
        for fn in progress_bar(image_files(path)):
            to = tmp/fn.relative_to(path)
            to.parent.mkdir(parents=True, exist_ok=True)
            im = load_rgb(fn, short_side)
            f = short_side/min(im.size)
            im.resize([round(o*f) for o in im.size], Image.Resampling.BILINEAR).save(to, 'JPEG', quality=90)
        tmp.rename(dest)
    return dest

class Named:
    "For a namedtuple that says what is to be run, as `share_units` takes it"
    @property
    def name(self): return '-'.join(str(o) for o in self if o is not None)

def command(): return shlex.join(['python', f'nbs/results/{Path(sys.argv[0]).name}', *sys.argv[1:]])

@contextmanager
def claim(fn):
    "Is this row ours to run? Not if it is there, or while another process is at it; a process that ends lets go of it"
    busy = fn.parent/'weights'/f'{fn.stem}.busy'
    busy.parent.mkdir(parents=True, exist_ok=True)
    with open(busy, 'w') as f:
        try: fcntl.flock(f, fcntl.LOCK_EX|fcntl.LOCK_NB)
        except BlockingIOError: mine = False
        else: mine = not fn.exists()
        yield mine

def run_missing(jobs, out, run):
    "`run(name, seed)`, a row, of each (name, seed) that is not there yet, with its seconds written to `out`"
    check_writable(Path(out)/'x')
    for name,seed in jobs:
        fn = Path(out)/f'{name}-{seed}.json'
        with claim(fn) as mine:
            if not mine: continue
            start = time.time()
            row = run(name, seed)
            write_row({**row, 'seconds':round(time.time()-start,1)}, fn)
            print(fn.stem, {k:v for k,v in row.items() if isinstance(v, float)}, flush=True)

def read_rows(out): return L(json.loads(o.read_text()) for o in sorted(Path(out).glob('*.json')) if o.name!='cost.json')

def cell(v):
    "Mean ± standard deviation of accuracies, in %"
    return f'{100*np.mean(v):.1f} ± {100*np.std(v, ddof=1):.1f}' if len(v)>1 else f'{100*v[0]:.1f}'

def mean_table(rows, names, cols, head='pretraining'):
    "A row a name: mean ± standard deviation over the seeds (each seed's value is in the files)"
    lines = [f'| {head} | seeds | '+' | '.join(cols.values())+' |', '| --- '*(len(cols)+2)+'|']
    for name in names:
        rs = rows.filter(lambda o: o['row']==name)
        if rs: lines.append(f'| {name} | {len(rs)} | '+' | '.join(cell(rs.attrgot(k)) for k in cols)+' |')
    return '\n'.join(lines)

def in_place(text, table):
    "`text` with `table` where a table of the same head was"
    lines = text.splitlines()
    i = lines.index(table.splitlines()[0])
    n = next((k for k,o in enumerate(lines[i:]) if not o.startswith('|')), len(lines)-i)
    return '\n'.join(lines[:i]+table.splitlines()+lines[i+n:])

def write_notebook(nb, fn): fn.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
