"The published tables are what the published rows say."
import importlib.util, json, os, subprocess, sys
from pathlib import Path
import pytest
from fastai_contrastive.objectives import *
from fastai_contrastive.objective import Objective

root = Path(__file__).resolve().parents[1]
results = root/'nbs/results'
def runs(glob): return pytest.mark.parametrize('run', sorted(o for o in results.glob(glob) if o.is_dir()), ids=lambda o: o.name)
wang,objs,real,photos,tasks = map(runs, ('imagewang-*','objectives-*','objectives-[0-9]*','photographs-*','tasks-[0-9]*'))

def script(name):
    if str(results) not in sys.path: sys.path.insert(0, str(results)) # They share a module
    spec = importlib.util.spec_from_file_location(f'{name}_results', results/f'{name}.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

def read(run): return [json.loads(o.read_text()) for o in sorted(run.glob('*.json')) if o.name!='cost.json']

def check_rows(rows, same):
    "Are these rows one table?"
    for k in same: assert len({json.dumps(o[k]) for o in rows if k in o})==1, k
    assert not any(o['commit'].endswith('+') or o['commit']=='unknown' for o in rows), 'rows must come from a committed state'

def on_page(text, page):
    cells = json.loads((root/f'nbs/{page}.ipynb').read_text(encoding='utf-8'))['cells']
    return any(text in ''.join(c['source']) for c in cells)

@wang
def test_table_of_imagewang(run): assert on_page(script('imagewang').table(run), 'tutorials/imagewang')

@wang
def test_rows_are_comparable(run):
    "Every row of a table was pretrained on the same images, with the same steps and the same fine-tuning"
    rows = read(run)
    check_rows(rows, ('size','bs','arch','arch_args','epochs','lr','n_images','ft_epochs','ft10_epochs','ft_lr','short_side','board_labels','imagenette10_labels','commit'))
    assert len({(o['pretrain']['images'],o['pretrain']['steps']) for o in rows if 'pretrain' in o})<=1
    assert len({(o['row'],o['seed']) for o in rows})==len(rows)

@photos
def test_tables_of_photographs(run):
    for t in script('photographs').tables(run): assert on_page(t, 'tutorials/worth')

def test_what_pretraining_is_worth():
    "README's table is that of the kept report, whose rows are of one commit"
    from fastai_contrastive.report.figures import Report
    m = script('imagenette')
    assert m.table(m.here) in (root/'README.md').read_text(encoding='utf-8')
    rep = Report(m.here)
    assert {o['commit'] for o in rep.units if 'commit' in o}=={rep.head['provenance']['commit']}
    seeds = {o:{u['seed'] for u in rep.of('tune', o)} for o in rep.names}
    assert set(map(frozenset, seeds.values()))=={frozenset(rep.plan['seeds'])}
    n = {len(rep.of('tune', o)) for o in rep.names}
    assert n=={len(rep.plan['seeds'])*len(rep.plan['shares'])}
    ahead = {}
    for o in m.differences(m.here): ahead.setdefault((o['row'],o['beside']), {})[o['measure'],o['pct']] = o['verdict']
    assert set(ahead['simclr','scratch'].values())==set(ahead['rotation','scratch'].values())=={'ahead'}
    assert set(ahead['rotation+simclr','simclr'].values())=={'within luck'}
    assert [k for k,v in ahead['rotation+simclr','rotation'].items() if v!='ahead']==[('tuned',1.)]

def test_table_of_the_board():
    "Rows of one commit, pretrained and fine-tuned alike, are on the page; no image of `val/` was trained on"
    m,out = script('board'),results/'board-64px'
    for t in m.tables(out).split('\n\n'): assert on_page(t, 'tutorials/imagewang')
    rows = read(out/'rows')
    check_rows(rows, ('commit','settings'))
    by = {k:[o for o in rows if o['what']==k] for k in ('pretrain','judge','choose','tune')}
    assert {(o['images'],o['steps'],o['epochs']) for o in by['pretrain']}=={(22419,7000,40)}
    assert {(o['labels'],o['n_labels'],o['n_valid']) for o in by['tune']}<={('all',14669,3929),('dogs',1275,3929),('dogs+rotation',1275,3929)}
    chosen = {(o['row'],o['labels']):o['lr'] for o in by['choose']}
    assert all(o['lr']==chosen[o['row'],o['labels'].split('+')[0]] for o in by['tune'])
    names = [tuple(o[k] for k in ('what','row','seed','labels','size','epochs')) for o in rows if o['what']!='pretrain']
    assert len(set(names))==len(names)

def test_kept_of_photographs():
    "The encoders of that report, and each seed's beginning, by one commit"
    rows = read(results/'keeps-64px-photographs')
    check_rows(rows, ('commit','arch','arch_args','size'))
    assert {o['row'] for o in rows}=={'scratch','simclr','rotation','rotation+simclr'}
    assert len({(o['row'],o['seed']) for o in rows})==len(rows)

@photos
def test_photographs_are_comparable(run):
    "The same images, steps and fine-tuning in each group, whatever the loss"
    rows = read(run)
    check_rows(rows, ('size','bs','arch','arch_args','epochs','lr','ft','ft_lr','short_side','acc1_labels','acc1_steps','acc10_labels'))
    assert len({(o['pretrain']['images'],o['pretrain']['steps']) for o in rows if 'pretrain' in o})<=1
    for labels in False,True: assert len({o['acc10_steps'] for o in rows if o['row'].startswith('labels')==labels})<=1
    assert len({(o['row'],o['seed']) for o in rows})==len(rows)

@objs
def test_page_of_objectives(run): assert on_page(script('objectives').table(run), 'tutorials/objectives')

@objs
def test_objectives_are_comparable(run):
    "The same encoder, batch and evaluation for every objective, and the same images"
    rows = read(run)
    check_rows(rows, ('data','size','bs','arch','arch_args','lr','wd','C','short_side'))
    assert len({o['images'] for o in rows if not o.get('labels') and 'images' in o})==1
    assert len({(o['objective'],o['seed']) for o in rows})==len(rows)

@real
def test_objectives_take_the_same_steps(run):
    rows = read(run)
    check_rows(rows, ('epochs',))
    assert len({o['steps'] for o in rows if not o.get('labels') and 'steps' in o})==1

@objs
def test_objectives_have_the_same_seeds(run):
    seeds = {}
    for o in read(run): seeds.setdefault(o['objective'], set()).add(o['seed'])
    assert len(seeds['untrained'])>=2
    assert not {n:o for n,o in seeds.items() if o!=seeds['untrained']}

@objs
def test_every_objective_has_rows(run):
    m = script('objectives')
    rows = read(run)
    assert {o['objective'] for o in rows}==set(m.jobs(rows[0]['data']))

def test_costs():
    "Measured for every objective, in one setting and the rows' own settings"
    m,costs = script('objectives'),json.loads((results/'objectives-64px'/'cost.json').read_text())
    assert set(costs)=={*m.known(),m.reference}
    check_rows(list(costs.values()), ('data','size','bs','arch','arch_args','commit'))
    rows = {o['objective']:o for o in read(results/'objectives-64px')}
    for k,c in costs.items(): assert c['settings']==rows[k]['settings'], k

# On the drawn images: kNN accuracy that an objective gains over the untrained encoder, at least, in each of three seeds
margin = .05
drawn = {(o['objective'],o['seed']):o for o in read(results/'objectives-drawn-32px')}
names = sorted({k for k,_ in drawn}-{'untrained'})

def learnt(row, untrained):
    "Rises by the margin, and the embeddings fill more than a corner of the sphere"
    assert row['knn']>=untrained['knn']+margin, f"kNN accuracy {row['knn']}, untrained {untrained['knn']}"
    assert row['spread']>=untrained['spread']/2, f"the embeddings have collapsed to a spread of {row['spread']}, untrained {untrained['spread']}"

@pytest.mark.parametrize('name', names)
def test_learns_as_kept(name):
    for seed in range(3): learnt(drawn[name,seed], drawn['untrained',seed])

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', names)
def test_learns(name, seed, tmp_path):
    "The same, run again: about a minute each"
    for o in ('untrained',name):
        r = subprocess.run([sys.executable, results/'objectives.py', '--data', 'synth', '--size', '32', '--epochs', '8', '--out', tmp_path, '--job', f'{o}:{seed}'], env={**os.environ, 'OMP_NUM_THREADS':'1'})
        assert not r.returncode
    row,untrained = (json.loads((tmp_path/f'{o}-{seed}.json').read_text()) for o in (name,'untrained'))
    learnt(row, untrained)

def test_kills():
    "Two hundred and more, of which 150 came in the middle of an epoch and twenty while a file was written; no end differs"
    from broken_off import cases
    m,rows = script('kills'),read(results/'kills')
    assert {o['case'] for o in rows}==set(cases()) and not any(o['unequal'] for o in rows)
    check_rows(rows, ('commit','device'))
    ks = [k for o in rows for k in o['kills']]
    assert len(ks)>=200 and sum(bool(k['on'] and k['on'][2]) for k in ks)>=150 and sum(k['writing'] for k in ks)>=20
    assert on_page(m.table(results/'kills'), 'runs/06_resumable')

# Pretext tasks: what each reached on photographs, and what it keeps of drawn images
def task_rows(folder): return {o['row']:o for o in read(results/folder)}

def test_every_task_is_asked_what_it_keeps():
    "Rows of each, alone and beside SimCLR; and each task's page has its table"
    m,rows = script('tasks'),task_rows('tasks-drawn-32px')
    assert set(rows)==set(m.drawn_names())
    check_rows(rows.values(), ('epochs',))
    for o in m.known: assert on_page(m.kept_table(o, rows), m.page_of(o).relative_to(root/'nbs').with_suffix(''))
    assert m.table(results/'tasks-drawn-32px', True) in (root/'nbs/pretext/index.md').read_text(encoding='utf-8')

@tasks
def test_every_task_on_photographs(run):
    "Rows of each, alone, beside SimCLR and beside labels, with as many steps; the index of tasks has their table"
    m,rows = script('tasks'),task_rows(run.name)
    assert set(rows)==set(m.names())
    check_rows(rows.values(), ('epochs','commit','size','bs','lr'))
    for labels in False,True: assert len({o['steps'] for k,o in rows.items() if 'steps' in o and k.startswith('labels')==labels})==1
    assert m.table(run, False) in (root/'nbs/pretext/index.md').read_text(encoding='utf-8')

def test_a_task_that_hardly_learns_was_given_longer():
    "Its row has the settings of the table but for the epochs, and a committed state; the index says what it reached"
    o,was = task_rows('longer-tasks-64px')['relative_patch'],task_rows('tasks-64px')['relative_patch']
    check_rows([o,was], ('size','bs','lr','arch','arch_args','commit'))
    assert o['epochs']==4*was['epochs'] and o['last']<was['last']
    said = (root/'nbs/pretext/index.md').read_text(encoding='utf-8')
    for v in f"{o['last']:.2f}",f"kNN {100*o['knn']:.1f}",f"linear {100*o['linear']:.1f}",f"{100*o['end'][2]:.0f}% of positions": assert v in said, v

@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(task_rows('tasks-drawn-32px')))
def test_keeps(name, tmp_path):
    "The same, run again: about a minute each"
    r = subprocess.run([sys.executable, results/'tasks.py', '--factors', '--only', name, '--out', tmp_path], env={**os.environ, 'OMP_NUM_THREADS':'1'})
    assert not r.returncode
    was,now = task_rows('tasks-drawn-32px')[name]['factors'],json.loads((tmp_path/f'{name}-0.json').read_text())['factors']
    assert was.keys()==now.keys()
    for k in was: assert abs(was[k]-now[k])<12, (k,was[k],now[k])

def test_what_each_keeps():
    "Rows of every loss and sum, with the same images and steps; what the page says of them is so"
    m = script('keeps')
    rows = {o['row']:o for o in read(results/'keeps-32px')}
    assert list(m.means(m.read_rows(results/'keeps-32px')))==m.names and set(rows)==set(m.names)
    check_rows(rows.values(), ('epochs','lr','seed','arch','arch_args','commit'))
    f,c = ({k:o[what] for k,o in rows.items()} for what in ('factors','conflict'))
    for o in 'inpainting','denoising':
        assert f[o]["ground's colour"]>f['simclr']["ground's colour"]+40 and f['simclr']['shape']>f[o]['shape']+40
        both = f[f'{o}+simclr']
        assert both['shape']>f['simclr']['shape']-10 and both["ground's colour"]>f[o]["ground's colour"]-15
        assert c[o]['ground']['ground']>90 and c[o]['texture']['texture']>c[o]['texture']['shape']
        assert c[o]['texture']['agree']<=60<80<=c['simclr']['texture']['agree']
    assert c['simclr']['texture']['shape']>3*c['simclr']['texture']['texture'] and c['simclr']['ground']['shape']>90
    assert max(f, key=lambda k: f[k]['turn'])=='rotation+simclr' and f['rotation']['turn']>20

def demo_runs(): return script('demo').read()

def test_demo_runs_are_comparable():
    "Every seed once, with the same settings, from one committed state"
    runs = demo_runs()
    check_rows(runs, ('commit','finetune','device','torch'))
    assert len({o['seed'] for o in runs})==len(runs)>0
    for k in zip(*(o['rows'] for o in runs)): assert len({json.dumps([o['row'],o['pretrain']]) for o in k})==1

def test_page_of_demo():
    "The table on the demo's page is that of the rows, and the README says as many seeds as there are"
    runs = demo_runs()
    assert on_page(script('demo').table(), 'commands/02_demo')
    assert f"{script('demo').held(runs)} of {len(runs)} seeds" in (root/'README.md').read_text(encoding='utf-8')
