"The commands: what they print, what they write, and what they say to a mistake"
import json, runpy, shutil, subprocess, sys
from importlib import reload
from pathlib import Path

import pytest
from fastcore.script import anno_parser
from fastai.vision.all import Learner
from safetensors.torch import load_file
from fastai_contrastive import cli, recipes
from fastai_contrastive.core import Objective
from fastai_contrastive.data import image_files, synth_images
from fastai_contrastive.encoder import create_encoder, load_encoder, save_encoder
from fastai_contrastive.pretext.core import PretextTask

commands = dict(demo='demo', pretrain='pretrain', finetune='finetune', eval='evaluate', bench='bench')
tiny = '--arch xresnet18 --arch-args widen=.25 --size 32 --bs 16 --epochs 1 --num-workers 0'.split()
scratch = '--encoder xresnet18 --arch-args widen=.25 --size 32 --bs 16 --epochs 1 --num-workers 0'.split()

@pytest.fixture(scope='module')
def shapes(tmp_path_factory): return synth_images(tmp_path_factory.mktemp('data')/'shapes', n_train=4, n_unsup=10, n_valid=2, size=32)

@pytest.fixture(scope='module')
def weights(tmp_path_factory): return save_encoder(create_encoder('xresnet18', widen=.25), tmp_path_factory.mktemp('weights')/'tiny')

@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    "Runs a command as its script does, in an empty folder; gives status, stdout and stderr"
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')
    def _run(name, *args):
        script = tmp_path/f'contrastive-{name}'
        script.write_text(f'import sys\nfrom fastai_contrastive.cli import {commands[name]} as f\nsys.exit(f())')
        monkeypatch.setattr(sys, 'argv', [str(script), *map(str, args)])
        capsys.readouterr()
        try: runpy.run_path(str(script), run_name='__main__')
        except SystemExit as e: status = e.code or 0
        return (status, *capsys.readouterr())
    return _run

@pytest.mark.parametrize('name', commands)
def test_help(run, name):
    status,out,_ = run(name, '--help')
    assert status==0 and out.startswith(f'usage: contrastive-{name} ')
    p = anno_parser(getattr(cli, commands[name]))
    for a in p._actions:
        if a.dest in ('pdb','xtra'): continue
        assert a.help and '\n' not in a.help and len(a.help)<200, f'{a.dest} has no line of help'

def _ours(registry): return [k for k,v in registry.items() if v.__module__.startswith('fastai_contrastive.')]

def test_help_knows_the_registries(run):
    out = ' '.join(run('pretrain', '--help')[1].split())
    for o in _ours(PretextTask.registry)+_ours(Objective.registry): assert o in out

def test_help_knows_a_new_objective():
    class Brandnew(Objective): pass
    try: assert 'brandnew' in anno_parser(reload(cli).pretrain).format_help()
    finally:
        del Objective.registry['brandnew']
        reload(cli)

mistakes = [
    ('pretrain', '--objective simcrl', "Did you mean 'simclr'"),
    ('pretrain', '--task rotatoin', "'rotation'"),
    ('pretrain', '', 'task= or objective='),
    ('pretrain', '--objective simclr --epochs 0', 'epochs must be 1 or more: got 0'),
    ('pretrain', '--objective simclr --bs 0', 'bs must be 1 or more: got 0'),
    ('pretrain', '--objective simclr --weight -1', 'weight must be 0 or more'),
    ('pretrain', '--objective simclr --lr 0', 'lr must be above 0'),
    ('pretrain', '--objective simclr --arch xresent18', "'xresnet18'"),
    ('pretrain', '--objective simclr --objective-args heads=3', 'heads'),
    ('pretrain', '--objective simclr --arch-args widen:5', 'key=value'),
    ('pretrain', '--objective simclr --views-args hues=.5', 'hues'),
    ('pretrain', '--objective simclr --views-args hue=5', 'hue must be'),
    ('pretrain', '--objective simclr --data nosuch', 'no folder nosuch'),
    ('pretrain', '--objective simclr --data imagewnag', "'imagewang'"),
    ('pretrain', '--objective simclr --data EMPTY', 'no images in'),
    ('pretrain', '--objective simclr --data UNSUP --knn', 'no folder train'),
    ('pretrain', '--objective simclr --data SHAPES --knn 100', 'number of training images'),
    ('pretrain', '--objective simclr --out FILE/weights', 'FILE is a file'),
    ('finetune', '--encoder none.safetensors --data SHAPES', 'no weights at none.safetensors'),
    ('finetune', '--encoder JUNK --data SHAPES', 'is not a safetensors file'),
    ('finetune', '--encoder WEIGHTS --arch xresnet34 --data SHAPES', 'does not fit xresnet34'),
    ('finetune', '--encoder xresnet18 --arch xresnet34', 'pass a .safetensors file'),
    ('finetune', '--encoder xresnet18 --size 32 --data SHAPES --pct 2', '0 < pct'),
    ('finetune', '--encoder xresnet18 --size 32 --data UNSUP', 'no folder train'),
    ('finetune', '', '--encoder'),
    ('eval', '--encoder xresnet18', 'no weights at xresnet18'),
    ('eval', '--encoder WEIGHTS --data nosuch', 'no folder nosuch'),
    ('eval', '--encoder WEIGHTS --data SHAPES --size 32 --num-workers 0 -k 100', 'got 100 with 40'),
    ('bench', '--cases simcrl', "'simclr'"),
    ('bench', '--cases rotation+labels+simclr', 'one task or labels'),
    ('demo', '--epochs 0', 'epochs must be 1 or more'),
    ('demo', '--n-labelled 10', '20 labelled images'),
    ('demo', '--out FILE', 'is a file'),
]

@pytest.mark.parametrize('name,args,msg', mistakes, ids=lambda o: o if o in commands else None)
def test_mistake(run, tmp_path, shapes, weights, monkeypatch, name, args, msg):
    "One line, status 2, nothing trained, nothing left behind"
    monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained before the mistake was found'))
    (tmp_path/'EMPTY').mkdir()
    (tmp_path/'FILE').write_text('')
    (tmp_path/'junk.safetensors').write_bytes(b'junk')
    for k,v in dict(EMPTY=tmp_path/'EMPTY', FILE=tmp_path/'FILE', JUNK=tmp_path/'junk.safetensors', UNSUP=shapes/'unsup', SHAPES=shapes, WEIGHTS=weights).items():
        args = args.replace(k, str(v))
    status,_,err = run(name, *args.split())
    assert status==2
    lines = err.strip().split('\n')
    if not lines[0].startswith('usage:'): assert len(lines)==1, err
    assert lines[-1].startswith(f'contrastive-{name}: error: ') and msg in lines[-1]
    assert not list(Path.cwd().iterdir()) and not list((tmp_path/'EMPTY').iterdir())

def test_traceback_on_demand(run, monkeypatch):
    monkeypatch.setenv('CONTRASTIVE_TRACEBACK', '1')
    with pytest.raises(ValueError, match='simclr'): run('pretrain', '--objective', 'simcrl')

def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def _bug(*args, **kwargs): raise RuntimeError('bug')
    monkeypatch.setattr(recipes, 'pretrain', _bug)
    with pytest.raises(RuntimeError, match='bug'): run('pretrain', '--objective', 'simclr')

def test_interrupt(run, monkeypatch):
    def _ctrl_c(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(recipes, 'pretrain', _ctrl_c)
    status,_,err = run('pretrain', '--objective', 'simclr')
    assert status==130 and err.strip()=='contrastive-pretrain: interrupted'

def test_script():
    "The installed script: one line and no warning of anyone's"
    r = subprocess.run([Path(sys.executable).with_name('contrastive-pretrain'), '--objective', 'simcrl'], capture_output=True, text=True)
    assert (r.returncode,r.stdout)==(2,'') and len(r.stderr.strip().split('\n'))==1 and r.stderr.startswith('contrastive-pretrain: error: ')

where = 'commit version torch torchvision fastai python device'.split()

def test_pretrain_finetune_eval(run, shapes):
    args = ['--data', shapes, '--task', 'rotation', '--objective', 'simclr', '--weight', '.5', '--views-args', 'hue=.5,scale=(.4,1)', *tiny]
    status,out,_ = run('pretrain', *args, '--knn', '5', '--out', 'w0.5')
    assert status==0 and 'w0.5.safetensors' in out and 'w0.5.json' in out
    row = json.loads(Path('w0.5.json').read_text())
    for k in [*recipe_fields(), *where, 'kind','name','images','steps','seconds','columns','values']: assert k in row
    assert row['name']=='rotation+simclr' and row['weight']==.5 and row['arch_args']=={'widen':.25} and row['views_args']=={'hue':.5,'scale':[.4,1]}
    assert row['columns']==['train_loss','valid_loss','accuracy','simclr','knn_acc'] and len(row['values'])==1
    table = [o for o in out.split('\n') if o.strip().startswith(('epoch','0 '))]
    assert len(table)==2 and '\r' not in out and '█' not in out

    status,out,_ = run('finetune', '--encoder', 'w0.5.safetensors', '--data', shapes, '--pct', '.5', '--arch', 'xresnet18', '--size', 32, '--bs', 16, '--epochs', 1, '--num-workers', 0)
    assert status==2, 'an xresnet18 of another width is another arch'
    status,out,_ = run('finetune', '--encoder', 'w0.5.safetensors', '--data', shapes, '--pct', '.5', '--size', 32, '--bs', 16, '--epochs', 1, '--num-workers', 0)
    row = json.loads(Path('w0.5.finetune.json').read_text())
    assert status==0 and Path('w0.5.finetune.pth').exists() and f"accuracy {100*row['accuracy']:.2f}%" in out
    for k in 'kind encoder arch data size bs epochs lr wd pct seed n_labels n_valid accuracy seconds'.split()+where: assert k in row
    assert row['n_labels']==20 and row['n_valid']==20

    status,out,_ = run('eval', '--encoder', 'w0.5.safetensors', '--data', shapes, '-k', 5, '--size', 32, '--num-workers', 0)
    row = json.loads(Path('w0.5.eval.json').read_text())
    assert status==0 and f"knn {100*row['knn']:.2f}%, linear {100*row['linear']:.2f}%" in out and '█' not in out
    for k in 'kind encoder arch data size k knn linear C n_train n_valid seconds'.split()+where: assert k in row

def recipe_fields(): return [f.name for f in recipes.fields(recipes.Recipe)]

def _same(a, b): return all((x==b[k]).all() for k,x in a.items())

def test_seed(run, shapes):
    "The same seed gives the same weights, from the command and from Python; another seed others"
    def _go(out, seed):
        assert run('pretrain', '--data', shapes, '--objective', 'simclr', *tiny, '--seed', seed, '--out', out)[0]==0
        return load_file(f'{out}.safetensors')
    a,b,c = _go('a', 0),_go('b', 0),_go('c', 1)
    assert _same(a, b) and not _same(a, c)
    r = recipes.Recipe(str(shapes), 32, 16, 'xresnet18', dict(widen=.25), objective='simclr', epochs=1)
    recipes.pretrain(r, 'd', num_workers=0)
    assert _same(a, load_file('d.safetensors'))

def test_finetune_from_scratch(run, shapes):
    accs = []
    for _ in range(2):
        assert run('finetune', *scratch, '--data', shapes)[0]==0
        accs.append(json.loads(Path('xresnet18.finetune.json').read_text())['accuracy'])
    assert accs[0]==accs[1]

@pytest.mark.parametrize('workers', [0,1])
def test_corrupt_image(run, shapes, tmp_path, workers):
    path = tmp_path/'broken'
    shutil.copytree(shapes, path)
    (path/'unsup'/'bad.jpg').write_bytes(next((path/'unsup').iterdir()).read_bytes()[:300])
    args = ['--data', path, '--task', 'rotation', *tiny, '--num-workers', workers]
    status,_,err = run('pretrain', *args)
    assert status==2 and len(err.strip().split('\n'))==1
    assert err.startswith('contrastive-pretrain: error: cannot read image') and 'bad.jpg' in err
    if workers: return
    with pytest.warns(UserWarning, match='bad.jpg'): assert run('pretrain', *args, '--skip-bad')[0]==0

def test_lines_in_a_terminal(shapes, monkeypatch, capsys):
    "Counts are written over; what stays is a line an epoch"
    monkeypatch.setattr(cli, 'is_terminal', lambda: True)
    recipes.finetune('xresnet18', shapes, None, 32, 16, 2, arch_args=dict(widen=.25), num_workers=0, cbs=cli.Lines(every=0))
    out = capsys.readouterr().out
    assert 'training 2/2' in out and 'to go' in out
    kept = [o.split('\r')[-1].split() for o in out.strip().split('\n')]
    assert [o[0] for o in kept]==['epoch','0','1'] and all(len(o)==5 for o in kept)

def test_demo(run):
    args = '--n-labelled 20 --n-unlabelled 20 --n-valid 20 --epochs 1 --finetune-epochs 1 --bs 16 --out'.split()
    status,out,_ = run('demo', *args, 'a')
    rows = json.loads(Path('a/results.json').read_text())
    names = ['from scratch','inpainting','SimCLR','inpainting + SimCLR']
    assert status==0 and [o['row'] for o in rows]==names
    for o in rows: assert any(l.split()==[*o['row'].split(), f"{100*o['knn']:.1f}", f"{100*o['accuracy']:.1f}"] for l in out.split('\n')), o['row']
    assert rows[0]['pretrain'] is None and len({o['pretrain']['steps'] for o in rows[1:]})==1 and len({o['finetune']['n_labels'] for o in rows})==1
    for f in ('views.png','neighbours.png','results.json'): assert str(Path('a')/f) in out and Path('a',f).stat().st_size>1000
    assert Path('a/inpainting+simclr.safetensors').exists() and '\r' not in out and len(out.split('\n'))<30
    run('demo', *args, 'b')
    again = json.loads(Path('b/results.json').read_text())
    assert [(o['knn'],o['accuracy']) for o in rows]==[(o['knn'],o['accuracy']) for o in again]
    assert _same(load_file('a/simclr.safetensors'), load_file('b/simclr.safetensors'))

def test_an_objective_with_labels(run, shapes):
    "It takes those of train/, alone and beside a task, and never those of val/"
    for more in ([], ['--task','rotation']):
        assert run('pretrain', '--data', shapes, '--objective', 'supcon', *more, *tiny, '--out', 'w')[0]==0
        row = json.loads(Path('w.json').read_text())
        assert row['labels'] and row['images']==len(image_files(shapes, ['train']))
    status,_,err = run('pretrain', '--data', shapes, '--objective', 'supcon', '--with-val', *tiny)
    assert status==2 and 'would train on the labels of val/' in err
    assert run('pretrain', '--data', shapes, '--objective', 'simclr', *tiny, '--out', 'w')[0]==0
    assert not json.loads(Path('w.json').read_text())['labels']

def test_a_column_without_a_number(run, shapes):
    "Two validation images are no batch for W-MSE: the row says null, and is written"
    assert run('pretrain', '--data', shapes, '--objective', 'wmse', '--objective-args', 'dim=8', *tiny, '--out', 'w')[0]==0
    assert json.loads(Path('w.json').read_text())['values'][0][1] is None
    assert run('pretrain', '--data', shapes, '--objective', 'simclr', '--task', 'rotation', '--weight', 0, *tiny, '--out', 'w')[0]==0

def test_cmc_beside_a_task(run, shapes):
    assert run('pretrain', '--data', shapes, '--objective', 'cmc', '--task', 'rotation', *tiny, '--out', 'w')[0]==0
    assert load_encoder('w.safetensors').arch=='split:xresnet18'
