r"""What is pretraining worth on Imagenette, and is a term beside a task worth more than either alone?

`contrastive-report` says it: all 9,469 training images at 64 pixels without their labels, a network of 0.3M weights, 40
epochs, three seeds; then 1, 2, 5, 10, 20, 50 and 100% of the labels, all of the network trained, learning rates chosen
on held-out labels. Some five hours of a core; several copies share the work, and the same command goes on:

    python nbs/results/imagenette.py --resized     # the images, resized once; says where they are
    contrastive-report ~/.fastai/data/imagenette2-160-short80 --size 64 --rows scratch,simclr,rotation,rotation+simclr \
        --fractions .01,.02,.05,.1,.2,.5,1 --epochs 40 --seeds 3 --steps 200 --arch xresnet_narrow \
        --arch-args blocks=1 --bs 128 --cache --hours 20 --num-workers 0 --out REPORT
    python nbs/results/imagenette.py --keep REPORT # its rows, without weights, are kept here
    python nbs/results/imagenette.py               # the table, and what is ahead of what
    python nbs/results/imagenette.py --put         # the table into the README's source (then: python scripts/readme.py)

On a GPU: `contrastive-report imagenette --size 128 --arch xresnet34 --epochs 100 --hours 3`, and the rest as above.
"""
from fastcore.script import *
from shared import *
from fastai_contrastive.report.figures import Report
from fastai_contrastive.report.curve import paired, say_points, by_seed

here = Path(__file__).parent/'imagenette-64px'
rows = 'scratch','rotation','simclr','rotation+simclr'

def keep(out, dest):
    "Plan and rows of a report, with no path of the machine in them"
    home = str(Path.home())
    for f in [Path(out)/'plan.json', *sorted((Path(out)/'rows').glob('*.json'))]:
        to = Path(dest)/f.relative_to(out)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(f.read_text().replace(str(Path(out)), 'REPORT').replace(home, '~'))

def table(out):
    "A line a row: mean ± standard deviation over the seeds, frozen features and fine-tuned"
    rep = Report(out)
    cols = {'kNN':('knn',1.), 'linear':('linear',1.)}
    cols.update({f'{100*f:g}% of the labels':('tuned',f) for f in (.01,.05,.1,.2,1.) if f in rep.plan['shares']})
    lines = ['| pretraining | seeds | '+' | '.join(cols)+' |', '| --- '*(len(cols)+2)+'|']
    for o in rows:
        vs = [list(by_seed(rep.frame, o, *c).values()) for c in cols.values()]
        lines.append(f'| {o} | {min(map(len, vs))} | '+' | '.join(cell(v) if v else '' for v in vs)+' |')
    return '\n'.join(lines)

def differences(out):
    "Points that each row is ahead of another, paired over the seeds, by share of the labels"
    rep = Report(out)
    both = 'rotation+simclr'
    for a,b in (('simclr','scratch'), ('rotation','scratch'), (both,'simclr'), (both,'rotation')):
        for m,f in [('knn',1.),('linear',1.),*(('tuned',f) for f in rep.plan['shares'])]:
            p = paired(by_seed(rep.frame, a, m, f), by_seed(rep.frame, b, m, f))
            yield dict(row=a, beside=b, measure=m, pct=f, points=say_points(p), verdict=p.verdict)

def put(out):
    "The table in the place of that which the README's source has"
    fn,t = Path(__file__).parents[1]/'index.ipynb',table(out)
    nb = json.loads(fn.read_text(encoding='utf-8'))
    c = next(c for c in nb['cells'] if t.splitlines()[0]+'\n' in c['source'])
    c['source'] = in_place(''.join(c['source']), t).splitlines(True)
    write_notebook(nb, fn)

@call_parse
def main(
    keep:str='', # Folder of a report, whose plan and rows are copied to where they are kept
    resized:store_true=False, # Only resize the images to a shorter side of 80 pixels, and say where they are
    put:store_true=False, # Only write the table to where the README comes from
):
    "The table of the kept report, and differences over its seeds."
    fs = globals()
    if resized: return print(small('imagenette', 80))
    if keep: return fs['keep'](keep, here)
    if put: return fs['put'](here)
    print(table(here))
    for o in differences(here): print('{row} beside {beside}, {measure}, {pct:g}: {points}'.format(**o))
