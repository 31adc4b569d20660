"""The demo, seed by seed: what does each loss forget, and does their sum keep it, in nine seeds of ten?

Each seed is one run of `contrastive-demo` with its default settings, and writes one JSON file into `demo-32px/`, so the
script can be stopped and started again, and two copies can share the work:

    python nbs/results/demo.py                 # every seed of 20 to 29 that is missing
    python nbs/results/demo.py --table-only    # the table of what is there

The settings were found on seeds of 100 and above. Two earlier choices were longer than the five minutes that a demo
may take, and their rows are kept: `demo-32px-first/` (a quarter of an xresnet18, weight .8, 20 epochs), where one of
four seeds did not come out as claimed, and `demo-32px-unfinished/` (the same, weight .5, 24 epochs), where both did.
The seeds that are reported had no part in any choice.
"""
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastcore.script import *
from fastai.vision.all import *
from fastai_contrastive.demo import demo, _demo_claims
from fastai_contrastive.recipes import provenance
from shared import run_missing

here = Path(__file__).resolve().parent/'demo-32px'
settings = 'size bs arch arch_args views_args weight epochs lr wd images steps'.split()
tuned = {'shape, few labels':'accuracy', 'colour, few labels':'colour'}

def job(seed):
    "One demo, and of its rows what a table needs"
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as d: rows = demo(d, seed=seed)
    small = [dict(row=o['row'], factors=o['factors'], knn=o['knn'], accuracy=o['accuracy'], colour=o['colour'],
                  pretrain=o['pretrain'] and {k:o['pretrain'][k] for k in settings}) for o in rows]
    few = {k:rows[0]['finetune'][k] for k in ('bs','epochs','lr','wd','n_labels','n_valid')}
    return dict(seed=seed, rows=small, finetune=few, cpu_seconds=round(time.process_time()-cpu), **provenance())

def read(run=here): return sorted((json.loads(o.read_text()) for o in Path(run).glob('*.json')), key=itemgetter('seed'))

def scores(runs):
    "Row → score → % of each seed"
    res = {}
    for o in (o for run in runs for o in run['rows']):
        vals = {**o['factors'], **{k:100*o[v] for k,v in tuned.items()}}
        for k,v in vals.items(): res.setdefault(o['row'], {}).setdefault(k, []).append(v)
    return res

def means(runs):
    "Row → factor → mean over seeds, %"
    return {row: {k:float(np.mean(v)) for k,v in o.items() if k not in tuned} for row,o in scores(runs).items()}

def held(runs):
    "In how many seeds all three claims hold"
    return sum(all(_demo_claims(o['rows']).values()) for o in runs)

def table(run=here):
    "Mean ± standard deviation over seeds, and in how many of them each claim holds"
    runs = read(run)
    res = scores(runs)
    names = list(next(iter(res.values())))
    sd = lambda v: f'{np.mean(v):.1f} ± {np.std(v, ddof=1):.1f}' if len(v)>1 else f'{v[0]:.1f}'
    lines = ['| | '+' | '.join(names)+' |', '| --- |'+' --- |'*len(names)]
    lines += [f"| {row} | "+' | '.join(sd(o[k]) for k in names)+' |' for row,o in res.items()]
    claims = [_demo_claims(o['rows']) for o in runs]
    each = '; '.join(f'{k}: {sum(o[k] for o in claims)} of {len(runs)}' for k in claims[0])
    return '\n'.join(lines)+f'\n\nSeeds in which it holds: {each}; all three: {held(runs)} of {len(runs)}.'

@call_parse
def main(
    seeds:str='20,21,22,23,24,25,26,27,28,29', # Those to run, if they are missing
    out:str=str(here), # Folder of the rows
    table_only:store_true=False, # Only print the table?
):
    "Run the demo for each seed that is missing, then print the table"
    if not table_only: run_missing([('seed',int(o)) for o in seeds.split(',')], out, lambda _,seed: job(seed))
    if read(out): print(table(out))
