"The commands: what they print, what they write, and what they say to a mistake"
import json, os, re, runpy, shlex, shutil, signal, subprocess, sys, time
from functools import partial
from importlib import reload
from pathlib import Path

import pytest
from fastcore.script import anno_parser
from fastai.vision.all import Learner
from safetensors.torch import load_file
from fastai_contrastive import cli, recipes
from fastai_contrastive.core import Objective
from fastai_contrastive.data import image_files, synth_images
from fastai_contrastive.encoder import create_encoder, encoder_info, load_encoder, save_encoder
from fastai_contrastive.pretext.core import PretextTask

commands = dict(demo='demo', pretrain='pretrain', finetune='finetune', eval='evaluate', bench='bench', report='report')
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
    ('pretrain', '', 'pass --task or --objective'),
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
    ('demo', '--n-probe 10', 'n-probe must be 50 or more'),
    ('demo', '--out FILE', 'is a file'),
    # Numbers out of range, found alike by every command
    *[(c, f'{o} {k} {v}', want) for c,o in dict(pretrain='--objective simclr', finetune='--encoder WEIGHTS', eval='--encoder WEIGHTS', bench='').items()
      for k,v,want in [('--size',0,'size must be 1 or more: got 0'), ('--num-workers',-1,'--num-workers must be 0 or more: got -1')]],
    *[(c, f'{o} {k} {v}', want) for c,o in dict(pretrain='--objective simclr', finetune='--encoder WEIGHTS').items()
      for k,v,want in [('--epochs',-1,'epochs must be 1 or more: got -1'), ('--lr','nan','lr must be a finite number: got nan'),
                       ('--wd',-1,'wd must be 0 or more'), ('--seed',-1,'seed must be 0 or more'), ('--bs','1.5',"invalid int value: '1.5'")]],
    ('pretrain', '--objective simclr --weight inf', 'weight must be a finite number'),
    ('pretrain', '--objective simclr --knn 0', 'knn must be 1 or more: got 0'),
    ('finetune', '--encoder WEIGHTS --pct 50', '50% is .5'),
    ('finetune', '--encoder WEIGHTS --pct nan', 'pct'),
    ('eval', '--encoder WEIGHTS -k 0', 'k must be 1 or more: got 0'),
    ('eval', '--encoder WEIGHTS --C 0', 'C must be above 0'),
    ('bench', '--n 0', 'n must be 1 or more'),
    ('bench', '--cases ,', 'no cases'),
    ('bench', '--cases simclr,rotation+simcrl', "'simclr'"),
    ('demo', '--size 0', 'size must be 1 or more'),
    # Settings of something that is not there, unknown ones, refused ones
    ('pretrain', '--task rotation --objective-args temp=.5', 'without --objective'),
    ('pretrain', '--objective simclr --task-args grid=4', 'without --task'),
    ('pretrain', '--objective simclr --objective-args tmp=.5', "--objective-args: simclr has no 'tmp'; its settings are temp, dim, hidden. Did you mean 'temp'?"),
    ('pretrain', '--task inpainting --task-args gird=4', "--task-args: inpainting has no 'gird'; its settings are area, grid, loss, rest, nh. Did you mean 'grid'?"),
    ('pretrain', '--task rotation --objective simclr --views-args hues=.5', "Did you mean 'hue'?"),
    ('pretrain', '--objective simclr --arch-args widne=.5', "--arch-args: xresnet34 has no 'widne'"),
    ('pretrain', '--objective simclr --arch resnet18 --arch-args group=2', "Did you mean 'groups'?"),
    ('pretrain', '--objective simclr --arch-args arch=2', "xresnet34 has no 'arch'"),
    ('pretrain', '--objective simclr --arch-args n_in=1', 'n_in is 3'),
    ('pretrain', "--objective simclr --objective-args temp='x'", '--objective-args: '),
    ('pretrain', '--objective simclr --arch-args widen=-1', '--arch-args: xresnet34 cannot be built'),
    ('pretrain', '--objective simclr --views-args size=-5', '--views-args: size must be None, a whole number of pixels > 0, or (height, width): got size=-5'),
    ('finetune', '--encoder xresnet18 --arch-args widne=.5 --data SHAPES', "Did you mean 'widen'?"),
    ('finetune', '--encoder WEIGHTS --arch-args widen=.5 --data SHAPES', 'of --arch-args are for an arch to start from scratch'),
    ('bench', '--arch-args group=2', "Did you mean 'groups'?"),
    # Several terms, and images for them
    ('pretrain', '--terms simcrl=.5', "no term is called 'simcrl'. Did you mean 'simclr'"),
    ('finetune', '--encoder WEIGHTS --data SHAPES --terms rotatoin', "Did you mean 'rotation'"),
    ('pretrain', '--terms simclr=.5,rotation=x', "the weight of rotation must be a number of 0 or more, or 'balanced': got 'x'"),
    ('pretrain', '--terms simclr=nan', 'the weight of simclr must be a number of 0 or more'),
    ('pretrain', '--terms simclr=', "or 'balanced': got ''"),
    ('finetune', '--encoder WEIGHTS --data SHAPES --terms simclr=-1', 'the weight of simclr must be a number of 0 or more'),
    ('pretrain', '--terms simclr,simclr=.5', '--terms: simclr is there twice'),
    ('pretrain', '--terms =.5', '--terms: terms are written name=weight,name=weight'),
    ('pretrain', '--task rotation --terms rotation=.5', 'rotation is asked for twice, as a term and as task'),
    ('pretrain', '--objective simclr --terms SimCLR=.5', 'simclr is asked for twice, as a term and as objective'),
    ('pretrain', '--terms simclr --term-args simclr.tmp=.5', "--term-args: simclr has no 'tmp'; its settings are temp, dim, hidden. Did you mean 'temp'?"),
    ('finetune', '--encoder WEIGHTS --data SHAPES --terms simclr --term-args simclr.temp=-1', '--term-args: temp must be above 0'),
    ('pretrain', '--terms simclr --term-args vicreg.dim=2', "settings of 'vicreg', which is no term of this run; its terms are simclr"),
    ('pretrain', '--terms simclr --term-args temp=.5', 'whose setting is temp? Write name.key=value'),
    ('pretrain', '--task rotation --unlabelled UNSUP', 'is for terms, and there are none: pass --terms'),
    ('finetune', '--encoder WEIGHTS --data SHAPES --unlabelled UNSUP', 'is for terms, and there are none: pass --terms'),
    ('pretrain', '--terms simclr --unlabelled UNSUP', 'terms alone see data'),
    ('pretrain', '--task rotation --terms supcon --unlabelled nosuch', 'supcon needs labels, and --unlabelled nosuch feeds it images without'),
    ('pretrain', '--task rotation --objective supcon --unlabelled nosuch', 'supcon needs labels, and --unlabelled nosuch'),
    ('finetune', '--encoder WEIGHTS --data nosuch --terms supcon --unlabelled nosuch', 'supcon needs labels'),
    ('pretrain', '--task rotation --terms simclr --data SHAPES --unlabelled nosuch', 'no folder nosuch'),
    ('finetune', '--encoder WEIGHTS --data SHAPES --size 32 --terms simclr --unlabelled FILE', 'is a file: name the folder'),
    ('finetune', '--encoder WEIGHTS --data SHAPES --size 32 --terms simclr --unlabelled EMPTY', 'no images in'),
    ('pretrain', '--task rotation --terms simclr --data SHAPES --unlabelled HELD', 'neither train nor unsup'),
    ('pretrain', '--task rotation --terms simclr --data SHAPES --unlabelled=', 'unlabelled is empty'),
    # Files and folders
    ('pretrain', '--objective simclr --data FILE', 'is a file: name the folder'),
    ('pretrain', '--objective simclr --data=', 'data is empty'),
    ('pretrain', '--objective simclr --data SHAPES --out EMPTY', 'is a folder: name a file in it'),
    ('pretrain', '--objective simclr --data SHAPES --out=', 'out is empty'),
    ('pretrain', '--objective simclr --data UNSUP --with-val', 'no folder val or valid'),
    ('pretrain', '--objective simclr --data HELD', 'neither train nor unsup'),
    ('finetune', '--encoder none/w --data SHAPES', 'no weights at none/w'),
    ('finetune', '--encoder FILE --data SHAPES', 'is not a safetensors file'),
    ('finetune', '--encoder xresent18 --data SHAPES', "'xresnet18'"),
    ('eval', '--encoder ~/none.safetensors', 'no weights at'),
    # Options
    ('pretrain', '--objective simclr --epoch_s 5', 'Did you mean --epochs?'),
    ('pretrain', '--objective simclr --objective-args temp=.5, dim=64', 'key=value,key=value'),
    ('eval', '--encoder WEIGHTS --frobnicate', 'see --help'),
    ('finetune', '--encoder WEIGHTS --epochs', 'expected one argument'),
]

@pytest.mark.parametrize('name,args,msg', mistakes, ids=lambda o: o if o in commands else None)
def test_mistake(run, tmp_path, shapes, weights, monkeypatch, name, args, msg):
    "One line, status 2, nothing trained, nothing left behind"
    monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained before the mistake was found'))
    (tmp_path/'EMPTY').mkdir()
    (tmp_path/'FILE').write_text('')
    (tmp_path/'junk.safetensors').write_bytes(b'junk')
    (tmp_path/'HELD'/'valid').mkdir(parents=True)
    for k,v in dict(HELD=tmp_path/'HELD', EMPTY=tmp_path/'EMPTY', FILE=tmp_path/'FILE', JUNK=tmp_path/'junk.safetensors', UNSUP=shapes/'unsup', SHAPES=shapes, WEIGHTS=weights).items():
        args = args.replace(k, str(v))
    status,_,err = run(name, *args.split())
    assert status==2
    lines = err.strip().split('\n')
    assert len(lines)==1, err
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
    assert row['columns']==['train_loss','valid_loss','accuracy','simclr_loss','knn_acc'] and len(row['values'])==1
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

several = ['--terms', 'simclr=.5,rotation=.1', '--term-args', 'simclr.temp=.2,rotation.all_four=True']

def test_pretrain_with_terms(run, shapes):
    "Columns, weights and settings of each; the folder that feeds them, and how many images it has; the same from Python"
    n = lambda *folders: len(image_files(shapes, list(folders)))
    status,out,_ = run('pretrain', '--data', shapes/'unsup', '--task', 'inpainting', *several, '--unlabelled', shapes, *tiny, '--out', 'w')
    row = json.loads(Path('w.json').read_text())
    assert status==0 and f"{row['images']} images and {row['n_unlabelled']} for the terms" in out
    assert row['name']=='inpainting+simclr+rotation' and row['terms']==dict(simclr=.5, rotation=.1) and row['term_args']==dict(simclr=dict(temp=.2), rotation=dict(all_four=True))
    assert row['unlabelled']==str(shapes) and row['n_unlabelled']==n('train','unsup')
    assert row['columns'][0]=='train_loss' and {'simclr_loss','rotation_loss'} <= set(row['columns'])
    assert encoder_info('w.safetensors')['recipe']['terms']==row['terms']
    r = recipes.Recipe(str(shapes/'unsup'), 32, 16, 'xresnet18', dict(widen=.25), 'inpainting', epochs=1, unlabelled=shapes, **{k:row[k] for k in ('terms','term_args')})
    recipes.pretrain(r, 'v', num_workers=0)
    assert _same(load_file('w.safetensors'), load_file('v.safetensors'))
    recipes.pretrain(recipes.Recipe(**{**vars(r), 'terms':dict(simclr=.5, rotation=.2)}), 'u', num_workers=0)
    assert not _same(load_file('w.safetensors'), load_file('u.safetensors')), 'the weight does nothing'

def test_terms_alone_and_beside_an_objective(run, shapes):
    "The weighted sum is all of the loss; batch norm's statistics move; an objective alone may have the labels, and the terms other images"
    assert run('pretrain', '--data', shapes, '--terms', 'cmc=.5,rotation', *tiny, '--bs', 8, '--out', 'w')[0]==0
    sd = load_file('w.safetensors')
    assert load_encoder('w.safetensors').arch=='split:xresnet18' and not any((v==0).all() for k,v in sd.items() if k.endswith('running_mean'))
    assert run('pretrain', '--data', shapes, '--objective', 'supcon', '--terms', 'simclr=.5', '--unlabelled', shapes/'unsup', *tiny, '--out', 'w', '--restart')[0]==0
    row = json.loads(Path('w.json').read_text())
    assert row['labels'] and (row['images'],row['n_unlabelled'])==(len(image_files(shapes, ['train'])),len(image_files(shapes, ['unsup'])))
    assert run('pretrain', '--data', shapes, '--terms', 'supcon', *tiny, '--out', 'w', '--restart')[0]==0
    row = json.loads(Path('w.json').read_text())
    assert row['labels'] and row['images']==len(image_files(shapes, ['train'])) and row['n_unlabelled'] is None

def test_finetune_with_terms(run, shapes):
    "Labels for some, terms for all; what is printed at the end of pretraining still pastes"
    args = ['finetune', *scratch, '--data', shapes, '--pct', .5, '--bs', 8]
    assert run(*args, '--out', 'plain')[0]==0
    status,out,_ = run(*args, *several, '--unlabelled', shapes, '--out', 'f')
    row,plain = (json.loads(Path(f'{o}.json').read_text()) for o in ('f','plain'))
    n = len(image_files(shapes, ['train','unsup']))
    assert status==0 and f'20 labels and {n} for the terms' in out and (row['n_labels'],row['n_unlabelled'])==(20,n)
    assert row['terms']==dict(simclr=.5, rotation=.1) and row['term_args']['simclr']=={'temp':.2} and row['unlabelled']==str(shapes)
    assert (plain['terms'],plain['term_args'],plain['unlabelled'],plain['n_unlabelled'])==({}, {}, None, None)
    assert run(*args, '--terms', 'supcon=.5', '--out', 'g')[0]==0, 'without another folder the labels are there'
    assert json.loads(Path('g.json').read_text())['n_unlabelled'] is None

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
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    recipes.finetune('xresnet18', shapes, None, 32, 16, 2, arch_args=dict(widen=.25), num_workers=0, cbs=cli.Lines(every=0))
    out = capsys.readouterr().out
    assert 'training 2/2' in out and 'to go' in out
    kept = [o.split('\r')[-1].split() for o in out.strip().split('\n')]
    assert [o[0] for o in kept]==['epoch','0','1'] and all(len(o)==5 for o in kept)

tiny_demo = '--n-labelled 20 --n-unlabelled 20 --n-valid 20 --epochs 1 --finetune-epochs 1 --bs 16 --n-probe 50 --out'.split()

def test_demo(run):
    status,out,_ = run('demo', *tiny_demo, 'a')
    rows = json.loads(Path('a/results.json').read_text())
    names = ['from scratch','inpainting','SimCLR','inpainting + SimCLR']
    assert status==0 and [o['row'] for o in rows]==names
    for o in rows:
        assert list(o['factors'])==['shape',"ground's colour",'size','turn','place']
        want = [f'{v:.1f}' for v in o['factors'].values()]+[f"{100*o['accuracy']:.1f}", f"{100*o['colour']:.1f}"]
        assert any(l.split()==[*o['row'].split(), *want] for l in out.split('\n')), o['row']
    assert rows[0]['pretrain'] is None and len({o['pretrain']['steps'] for o in rows[1:]})==1
    assert {o[k]['n_labels'] for o in rows for k in ('finetune','finetune_colour')}=={20}
    for f in ('factors.png','views.png','neighbours.png','results.json'): assert str(Path('a')/f) in out and Path('a',f).stat().st_size>1000
    assert Path('a/inpainting+simclr.safetensors').exists() and '\r' not in out and len(out.split('\n'))<30
    run('demo', *tiny_demo, 'b')
    again = json.loads(Path('b/results.json').read_text())
    keys = 'knn','accuracy','colour','factors'
    assert [[o[k] for k in keys] for o in rows]==[[o[k] for k in keys] for o in again]
    assert _same(load_file('a/simclr.safetensors'), load_file('b/simclr.safetensors'))

def _demo_rows(task, con, both):
    "Rows of a demo whose factors are (shape, colour)"
    from fastai_contrastive.demo import _demo_runs
    return [dict(row=k, factors={'shape':o[0], "ground's colour":o[1]}) for k,o in zip(_demo_runs, [(17,71),task,con,both])]

@pytest.mark.parametrize('task,con,both,no', [((30,78),(98,20),(97,69),[]), ((30,78),(54,20),(54,69),['inpainting forgets the shape']),
    ((30,78),(98,60),(97,69),['SimCLR forgets the colour']), ((30,78),(98,20),(82,69),['the sum keeps both']), ((30,78),(98,20),(97,62),['the sum keeps both'])])
def test_what_the_demo_says(task, con, both, no):
    "It claims what came out, and no more"
    from fastai_contrastive.demo import _demo_claims, _demo_says
    rows = _demo_rows(task, con, both)
    assert [k for k,v in _demo_claims(rows).items() if not v]==no
    said = _demo_says(rows)
    assert all(o in said for o in no) and ('did not come out' in said)==bool(no) and len(said.split('\n'))==2
    if not no: assert all(f'({a:.0f}/{b:.0f})' in said for a,b in (task,con,both))

def test_demo_images_in_memory(shapes):
    "Pretraining gets the batches that the files would give"
    import torch
    from fastai_contrastive.demo import _demo_dls, _demo_images
    from fastai_contrastive.data import unlabeled_dls
    files = unlabeled_dls(shapes, 32, 8, ['train','unsup'], num_workers=0)
    dls = _demo_dls(_demo_images(shapes), shapes, 8, 3)
    a,b = ([dl.new(shuffle=False, drop_last=False) for dl in o.loaders] for o in (dls,files))
    for p,q in zip(a, b):
        x,y = (torch.cat([o[0] for o in dl]) for dl in (p,q))
        assert torch.equal(x, y) and len(x)>0
    again = _demo_dls(_demo_images(shapes), shapes, 8, 3)
    assert all(torch.equal(p[0], q[0]) for p,q in zip(dls.train, again.train)), 'the seed says the order'

def test_demo_asks_for_the_ground(shapes):
    "The second question: the same images, and the channel that the table says"
    from fastai_contrastive.demo import _ground_dls
    from fastai_contrastive.data import labelled_dls, synth_factors
    dls = labelled_dls(shapes, 32, 8, num_workers=0)
    asked,t = _ground_dls(shapes, dls, 32, 8),synth_factors(shapes).set_index('file')
    assert list(asked.vocab)==['red','green','blue']
    for ds,was in ((asked.train_ds,dls.train_ds),(asked.valid_ds,dls.valid_ds)):
        assert list(ds.items)==list(was.items)
        for f,(_,y) in zip(ds.items, ds): assert t.loc[str(Path(f).relative_to(shapes)), f'ground_{"rgb"[int(y)]}']==t.loc[str(Path(f).relative_to(shapes)), ['ground_r','ground_g','ground_b']].max()

def test_an_objective_with_labels(run, shapes):
    "It takes those of train/, alone and beside a task, and never those of val/"
    for more in ([], ['--task','rotation']):
        assert run('pretrain', '--data', shapes, '--objective', 'supcon', *more, *tiny, '--out', 'w', '--restart')[0]==0
        row = json.loads(Path('w.json').read_text())
        assert row['labels'] and row['images']==len(image_files(shapes, ['train']))
    status,_,err = run('pretrain', '--data', shapes, '--objective', 'supcon', '--with-val', *tiny)
    assert status==2 and 'would train on the labels of val/' in err
    assert run('pretrain', '--data', shapes, '--objective', 'simclr', *tiny, '--out', 'w', '--restart')[0]==0
    assert not json.loads(Path('w.json').read_text())['labels']

def test_a_column_without_a_number(run, shapes):
    "Two validation images are no batch for W-MSE: the row says null, and is written"
    assert run('pretrain', '--data', shapes, '--objective', 'wmse', '--objective-args', 'dim=8', *tiny, '--out', 'w')[0]==0
    assert json.loads(Path('w.json').read_text())['values'][0][1] is None
    assert run('pretrain', '--data', shapes, '--objective', 'simclr', '--task', 'rotation', '--weight', 0, *tiny, '--out', 'w', '--restart')[0]==0

def test_cmc_beside_a_task(run, shapes):
    assert run('pretrain', '--data', shapes, '--objective', 'cmc', '--task', 'rotation', *tiny, '--out', 'w')[0]==0
    assert load_encoder('w.safetensors').arch=='split:xresnet18'

# What is no list of key=value literals, and the commands and options that take one
no_settings = ['temp', '.5', 'temp,dim=64', 'temp:.5', "'temp=.5'", "temp=.5,'dim'", '**x', "**{'temp':.5}", 'temp=.5,temp=.6', 'temp=1e-3*2', 'temp=abs(1)',
    'a=dict(temp=.5)', 'a={1,2}', 'a=b"x"', 'a=1j', 'a=1e999', 'temp=x', 'temp==.5', 'temp=', '=.5', 'temp=.5;dim=3', 'temp=.5)+dict(dim=3', 'temp=(.5', '[.5]', 'temp=.5 dim=3',
    'temp=.5)(dim=3', 'temp=.5 for x in y', "f'{1}'", 'temp=...']
takers = [('pretrain','objective-args'), ('pretrain','task-args'), ('pretrain','arch-args'), ('pretrain','views-args'), ('finetune','arch-args'), ('bench','arch-args')]
points = [('pretrain','term-args'), ('finetune','term-args')] # These say whose setting it is
written = dict(settings=('a_B=1',{'a_B':1}), term_settings=('a_B.c=1',{'a_B':{'c':1}}), term_weights=('a_B=1',{'a_B':1.}))

@pytest.mark.parametrize('text', no_settings)
def test_no_settings(run, monkeypatch, text):
    "Refused as a whole, with the right form, by every option that takes settings"
    monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained'))
    for name,opt in takers:
        status,out,err = run(name, '--encoder' if name=='finetune' else f'--{opt}={text}', *(['xresnet18',f'--{opt}={text}'] if name=='finetune' else []))
        assert (status,out)==(2,'') and err.count('\n')==1, err
        assert 'key=value,key=value' in err and '"loss=\'l2\',grid=4"' in err and f'--{opt}' in err and err.rstrip().endswith(text)

@pytest.mark.parametrize('text', no_settings)
def test_no_settings_of_terms(run, monkeypatch, text):
    monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained'))
    text = 'simclr.'+text if text.startswith('temp') else text
    for name,opt in points:
        status,out,err = run(name, *['--encoder','xresnet18'][:2*(name=='finetune')], '--terms', 'simclr', f'--{opt}={text}')
        assert (status,out)==(2,'') and err.count('\n')==1 and f'--{opt}' in err and err.rstrip().endswith(text) and '\u01c0' not in err, err

@pytest.mark.parametrize('text,want', [('', {}), ('a.b=1', {'a':{'b':1}}), (" a.b = 'x.y=z' , c.d=(1,2.5), a.e=None", {'a':dict(b='x.y=z', e=None), 'c':{'d':(1,2.5)}}),
    ('a.b=1.5,a_c.d=.5', {'a':{'b':1.5}, 'a_c':{'d':.5}})])
def test_term_settings(text, want): assert cli.term_settings(text)==want

@pytest.mark.parametrize('text,want', [('a', dict(a=1.)), ('a=.5,b', dict(a=.5, b=1.)), (' a = 1e-2 , b=balanced', dict(a=.01, b='balanced'))])
def test_term_weights(text, want): assert cli.term_weights(text)==want

@pytest.mark.parametrize('text,want', [('', {}), ('a=1', dict(a=1)), ("a='x y',b=(1,2),c=[None,True],d={'e':-.5},", dict(a='x y', b=(1,2), c=[None,True], d={'e':-.5})),
    (' a = 1e-3 , b = "a,b=c" ', dict(a=1e-3, b='a,b=c'))])
def test_settings(text, want): assert cli.settings(text)==want

@pytest.mark.parametrize('name', commands)
def test_spelling(name):
    "Every option of every command with hyphens, with underscores, and in capitals; its value stays as it is"
    p = cli.command_parser(getattr(cli, commands[name]), 'x')
    need = ['--encoder','a_B'] if name in ('finetune','eval') else ['photos'] if name=='report' else []
    n = 0
    for a in p._actions:
        if a.dest in ('help','pdb','xtra'): continue
        val = [] if a.nargs==0 else [written[a.type.__name__][0] if a.type.__name__ in written else 'a_B' if a.type is str else '3']
        for o in a.option_strings:
            for s in (o, '--'+o[2:].replace('-','_') if o[:2]=='--' else o, o.upper()):
                got = cli.parse_options(p, [*need, s, *val])[a.dest]
                assert got==(True if not val else val[0] if a.type is str else written[a.type.__name__][1] if a.type.__name__ in written else a.type(val[0])), s
                n += 1
    assert n>20

@pytest.mark.parametrize('name', commands)
@pytest.mark.parametrize('cols', [60,100,200])
def test_help_fits(run, monkeypatch, name, cols):
    monkeypatch.setenv('COLUMNS', str(cols))
    status,out,_ = run(name, '--help')
    assert status==0 and max(map(len, out.split('\n')))<=min(cols, 100)

class Now:
    "Raises `e` in batch `batch` of epoch `epoch` of any fit"
    def __init__(self, monkeypatch, epoch, e=KeyboardInterrupt, batch=0):
        def _after_batch(cb):
            if cb.training and (cb.epoch,cb.iter)==(epoch,batch): raise e
        monkeypatch.setattr(cli.Lines, 'after_batch', _after_batch)

def test_interrupt_says_what_was_saved(run, shapes, monkeypatch):
    "Before the first epoch nothing, after it the epoch and how many were asked for, in the message, the header and the row"
    args = ['--data', shapes, '--objective', 'simclr', *tiny, '--epochs', 3, '--out', 'w']
    with monkeypatch.context() as m:
        Now(m, 0)
        status,_,err = run('pretrain', *args)
    assert status==130 and err.strip()=='contrastive-pretrain: interrupted: nothing was saved' and not list(Path.cwd().iterdir())
    assert run('pretrain', *args)[0]==0
    whole,row = Path('w.safetensors').read_bytes(),json.loads(Path('w.json').read_text())
    assert (row['epoch'],row['epochs'],row['finished'])==(3, 3, True)
    assert {k:encoder_info('w.safetensors')['recipe'][k] for k in ('epoch','epochs','finished')}==dict(epoch=3, epochs=3, finished=True)
    with monkeypatch.context() as m:
        Now(m, 0, batch=1)
        err = run('pretrain', *args, '--seed', 1, '--restart')[2]
    assert err.strip()=="contrastive-pretrain: interrupted: nothing was saved; w.safetensors is an earlier run's"
    assert Path('w.safetensors').read_bytes()==whole and json.loads(Path('w.json').read_text())==row
    with monkeypatch.context() as m:
        Now(m, 2)
        status,out,err = run('pretrain', *args, '--seed', 1, '--restart')
    assert status==130 and err.strip().startswith('contrastive-pretrain: interrupted: w.safetensors holds the encoder after epoch 2 of 3; w.run holds the run up to step ') and 'next:' not in out
    head,row = encoder_info('w.safetensors')['recipe'],json.loads(Path('w.json').read_text())
    for o in (head,row): assert (o['seed'],o['epoch'],o['epochs'],o['finished'])==(1, 2, 3, False)
    assert len(row['values'])==2
    # Whoever uses it is told, and the row remembers
    with pytest.warns(UserWarning, match='stopped after epoch 2 of 3'):
        assert run('eval', '--encoder', 'w', '--data', shapes, '--size', 32, '--num-workers', 0, '--c', .1)[0]==0
    assert json.loads(Path('w.eval.json').read_text())['encoder_epoch']==2

def test_an_old_row_goes_before_new_weights(run, shapes, monkeypatch):
    "Killed right after the weights were written, a run leaves no row of another"
    args = ['--data', shapes, '--objective', 'simclr', *tiny, '--out', 'w']
    assert run('pretrain', *args)[0]==0 and Path('w.json').exists()
    def _killed(*a): raise KeyboardInterrupt
    monkeypatch.setattr(recipes, 'write_row', _killed)
    assert run('pretrain', *args, '--seed', 1, '--restart')[0]==130
    assert encoder_info('w.safetensors')['recipe']['seed']==1 and not Path('w.json').exists()

def test_interrupt_of_the_others(run, shapes, weights, monkeypatch):
    "Fine-tuning and the benchmark say what there is; a row of an earlier run is called that"
    args = ['--encoder', weights, '--data', shapes, '--size', 32, '--epochs', 2, '--num-workers', 0, '--out', 'f']
    for more in ('', '; f.json is the row of an earlier run'):
        with monkeypatch.context() as m:
            Now(m, 1)
            status,_,err = run('finetune', *args, *['--restart']*bool(more))
        assert status==130 and err.strip().startswith('contrastive-finetune: interrupted: fine-tuning stopped in epoch 2 of 2, nothing was written'+more)
        if not more: assert not Path('f.json').exists() and run('finetune', *args)[0]==0
    case,n = cli.bench_rows.__globals__['bench_case'],[]
    def _second(c, *a, **k):
        n.append(c)
        if len(n)==2: raise KeyboardInterrupt
        return case(c, *a, **k)
    monkeypatch.setitem(cli.bench_rows.__globals__, 'bench_case', _second)
    bench = ['--data', shapes, '--cases', 'simclr,rotation+simclr', '--arch', 'xresnet18', '--arch-args', 'widen=.25', '--size', 32, '--bs', 8, '--n', 1, '--repeats', 1]
    status,_,err = run('bench', *bench)
    assert status==130 and err.strip().endswith('interrupted: bench.json has 1 of 2 cases')
    assert [o['case'] for o in json.loads(Path('bench.json').read_text())]==['simclr']

@pytest.mark.parametrize('sig,status,word', [(signal.SIGINT,130,'interrupted'), (signal.SIGTERM,143,'terminated')])
def test_signals(shapes, tmp_path, sig, status, word):
    "The installed command, stopped from outside once an epoch is there"
    exe = Path(sys.executable).with_name('contrastive-pretrain')
    p = subprocess.Popen([exe, '--data', shapes, '--objective', 'simclr', *tiny, '--epochs', '5000', '--out', tmp_path/'w'], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path,
        preexec_fn=partial(signal.signal, sig, signal.SIG_DFL)) # Started in the background, the tests may ignore Ctrl-C
    try:
        for _ in range(1200):
            if (tmp_path/'w.json').exists() or p.poll() is not None: break
            time.sleep(.1)
        p.send_signal(sig)
        err = p.communicate(timeout=60)[1].strip().split('\n')
    finally: p.kill()
    at = encoder_info(tmp_path/'w.safetensors')['recipe']
    assert p.returncode==status and err[-1].startswith(f"contrastive-pretrain: {word}: {tmp_path/'w.safetensors'} holds the encoder after epoch {at['epoch']} of 5000; {tmp_path/'w.run'} holds the run")
    assert not at['finished'] and not list(tmp_path.glob('.*')) and 'Traceback' not in ' '.join(err)

def few(path, n, classes, valid=None):
    "`n` images of each of `classes`, from drawn ones"
    src = synth_images(path.parent/'drawn', n_train=max(n.values()), n_unsup=0, n_valid=2, size=32)
    for c in classes: shutil.copytree(src/'val'/c, path/'val'/c)
    for c in valid or classes:
        (path/'train'/c).mkdir(parents=True)
        for f in sorted((src/'train'/c).iterdir())[:n.get(c, max(n.values()))]: shutil.copy(f, path/'train'/c)
    return path

needs_three = 'choosing C takes 3 training images of every class: the smallest has 2; pass C, say C=.01'

def dead(path):
    "Weights whose features are all zero"
    enc = create_encoder('xresnet18', widen=.25)
    for p in enc.parameters(): p.data.zero_()
    return save_encoder(enc, path)

def test_eval_of_two_images(run, weights, tmp_path):
    "A class of two images costs no result; with or without a strength of regularisation, in each spelling of its option"
    args = ['--encoder', weights, '--data', few(tmp_path/'few', dict(disk=2, heart=6), ['disk','heart']), '--size', 32, '--num-workers', 0, '--out', 'e']
    for more in ([], *([o,'.01'] for o in ('--c','--C','-c','-C'))):
        status,out,_ = run('eval', *args, *more)
        row = json.loads(Path('e.json').read_text())
        assert status==0 and f"knn {100*row['knn']:.2f}%" in out and row['k']==8 and 'linear' in {**row.get('missing', {}), **{k:v for k,v in row.items() if v is not None}}
        if more: assert row['C']==.01 and f"linear {100*row['linear']:.2f}%" in out

@pytest.mark.parametrize('lost,kept', [('knn','linear'), ('linear','knn')])
def test_eval_keeps_what_it_has(run, weights, shapes, tmp_path, monkeypatch, lost, kept):
    "One result that cannot be had costs not the other: shown, written, and said why, with an option that exists"
    if lost=='knn': weights = dead(tmp_path/'dead')
    else:
        def _probe(*args, **kwargs): raise ValueError(needs_three)
        monkeypatch.setitem(recipes.evaluate.__globals__, 'linear_probe', _probe)
    with pytest.warns(UserWarning) as w: status,out,_ = run('eval', '--encoder', weights, '--data', shapes, '--size', 32, '--num-workers', 0, '--out', 'e')
    row,said = json.loads(Path('e.json').read_text()),[cli.in_options(str(o.message), {'C':'--c'}) for o in w]
    assert status==0 and f'{kept} {100*row[kept]:.2f}%' in out and f'{lost} -' in out
    assert row[lost] is None and list(row['missing'])==[lost] and any(o.startswith(f'no {lost}: ') for o in said)
    if lost=='linear': assert said[-1].endswith('choose it, say by --c .01') and '--c' in run('eval', '--help')[1]

def test_eval_says_it_in_one_line(shapes, tmp_path):
    "From the installed command: results on stdout, the reason on stderr"
    r = subprocess.run([Path(sys.executable).with_name('contrastive-eval'), '--encoder', dead(tmp_path/'dead'), '--data', shapes, '--size', '32', '--num-workers', '0', '--c', '.1'],
        capture_output=True, text=True)
    assert r.returncode==0 and 'knn -, linear ' in r.stdout
    assert re.fullmatch(r'contrastive-eval: warning: no knn: .* zero.*\n', r.stderr), r.stderr

def test_eval_with_nothing_to_have(run, tmp_path, shapes, weights):
    "Features that are no numbers, one class, a class that only val has: neither result, one line, no row"
    enc = load_encoder(weights)
    for p in enc.parameters(): p.data.fill_(float('nan'))
    save_encoder(enc, 'nan')
    status,_,err = run('eval', '--encoder', 'nan', '--data', shapes, '--size', 32, '--num-workers', 0)
    assert status==2 and err.count('\n')==1 and not Path('nan.eval.json').exists() # A file of weights that are no numbers is not opened
    status,_,err = run('eval', '--encoder', weights, '--data', few(tmp_path/'few', dict(heart=4), ['disk','heart'], ['heart']), '--size', 32, '--num-workers', 0, '--out', 'e')
    assert status==2 and err.count('\n')==1 and 'disk' in err and not Path('e.json').exists()
    status,_,err = run('eval', '--encoder', weights, '--data', few(tmp_path/'one', dict(disk=4), ['disk']), '--size', 32, '--num-workers', 0, '--out', 'e')
    assert status==2 and err.count('\n')==1 and 'two classes' in err and not Path('e.json').exists()

def pasted(out): return [o.split('next:', 1)[1].strip() for o in out.split('\n') if 'next:' in o]

@pytest.mark.parametrize('more', [['--objective','simclr'], ['--objective','cmc'], ['--task','rotation','--skip-bad']], ids=lambda o: o[1])
def test_next_can_be_pasted(run, shapes, tmp_path, more):
    "Spaces, quotes and dollars in names"
    data = tmp_path/"it's my $data"
    shutil.copytree(shapes, data)
    status,out,_ = run('pretrain', '--data', data, *more, *tiny, '--out', "my 'w' $1")
    line, = pasted(out)
    name,*args = shlex.split(line)
    assert status==0 and name=='contrastive-finetune' and ('--skip-bad' in args)==('--skip-bad' in more)
    status,out,err = run('finetune', *args, '--epochs', 1)
    assert status==0 and 'accuracy ' in out and Path("my 'w' $1.finetune.json").exists(), err

def test_no_next_where_it_cannot_work(run, shapes, tmp_path):
    no_val,flat = tmp_path/'noval',shapes/'unsup'
    shutil.copytree(shapes/'train', no_val/'train')
    for data in (no_val,flat):
        status,out,_ = run('pretrain', '--data', data, '--objective', 'simclr', *tiny, '--out', 'w', '--restart')
        assert status==0 and not pasted(out) and 'to fine-tune: labelled images are needed' in out and 'contrastive-finetune' not in out

def test_demo_next_can_be_pasted(run):
    "Each command of the last lines is one that its parser takes"
    args = '--n-labelled 25 --n-unlabelled 20 --n-valid 20 --epochs 1 --finetune-epochs 1 --bs 16 --n-probe 50 --out'.split()
    out = run('demo', *args, 'a')[1]
    lines = [shlex.split(o) for o in out.split('\n') if o.strip().startswith('contrastive-')]
    assert len(lines)==2 and 'Drawing 20 images' in out and 'same 20 labels' in out
    for name,*a in lines: cli.parse_options(cli.command_parser(getattr(cli, commands[name.removeprefix('contrastive-')]), name), a)

def test_demo_interrupted(run, monkeypatch):
    "No results of an earlier demo beside the weights of a new one"
    args = '--n-labelled 20 --n-unlabelled 20 --n-valid 20 --epochs 2 --finetune-epochs 1 --bs 16 --n-probe 50 --out a'.split()
    assert run('demo', *args)[0]==0
    Now(monkeypatch, 1)
    status,_,err = run('demo', *args, '--seed', 1)
    assert status==130 and 'a/inpainting.safetensors holds the encoder after epoch 1 of 2' in err
    assert not Path('a/results.json').exists() and not Path('a/factors.png').exists() and not Path('a/neighbours.png').exists() and not Path('a/simclr.safetensors').exists()

def test_no_numbers_in_rows_and_tables(run, shapes, monkeypatch):
    "A column that is nan is null in the row and a dash in the table; a training loss that is nan stops the run, and is said"
    import torch
    from fastai_contrastive.core import TermColumn
    monkeypatch.setattr(TermColumn, 'value', property(lambda self: float('nan')))
    status,out,_ = run('pretrain', '--data', shapes, '--objective', 'simclr', '--task', 'rotation', *tiny, '--out', 'w')
    row = json.loads(Path('w.json').read_text(), parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    assert status==0 and row['values'][0][3] is None
    assert [o.split()[4] for o in out.split('\n') if o.strip().startswith('0 ')]==['-']
    status,out,err = run('pretrain', '--data', shapes, '--objective', 'simclr', *tiny, '--epochs', 2, '--lr', '1e30', '--out', 'w', '--restart')
    assert status==2 and 'the run has diverged at step' in err and 'lower' in err

def test_places(run, shapes, monkeypatch, tmp_path):
    "A folder that is not there yet, the home folder, another suffix, no suffix, from another folder, weights without suffix"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    args = ['--data', shapes, '--objective', 'simclr', *tiny, '--out']
    for out,want in [('new/er/w','new/er/w'), ('~/w',tmp_path/'home/w'), ('x.json','x'), ('a b','a b')]:
        assert run('pretrain', *args, out)[0]==0
        for o in ('.safetensors','.json'): assert Path(f'{want}{o}').exists()
    assert not Path('~').exists()
    shutil.copytree(shapes, tmp_path/'cwd'/'data')
    for enc in ('new/er/w','new/er/w.safetensors','~/w'):
        assert run('eval', '--encoder', enc, '--data', 'data', '--size', 32, '--num-workers', 0, '--c', .1)[0]==0
    assert Path('new/er/w.eval.json').exists() and (tmp_path/'home/w.eval.json').exists()

def test_valid_as_fastai_calls_it(run, shapes, tmp_path):
    "train/ and valid/: pretraining leaves the latter out, or sees it when told to; the other commands take it"
    path = tmp_path/'shapes'
    shutil.copytree(shapes, path)
    (path/'val').rename(path/'valid')
    n = lambda *folders: len(image_files(path, list(folders)))
    for more,want in [([],n('train','unsup')), (['--with-val'],n('train','unsup','valid'))]:
        dls = recipes.pretrain_dls(path, 32, 16, bool(more), num_workers=0)
        assert len(dls.train_ds)+len(dls.valid_ds)==want
    shutil.rmtree(path/'unsup')
    shutil.rmtree(path/'train')
    with pytest.raises(ValueError, match='neither train nor unsup'): recipes.pretrain_dls(path, 32)

def test_valid_has_labels(run, shapes, tmp_path):
    path = tmp_path/'shapes'
    shutil.copytree(shapes, path)
    (path/'val').rename(path/'valid')
    status,out,_ = run('pretrain', '--data', path, '--objective', 'simclr', *tiny, '--knn', 5, '--out', 'w')
    assert status==0 and run('finetune', *shlex.split(pasted(out)[0])[1:], '--epochs', 1)[0]==0

def test_ascii_terminal_and_a_reader_that_left(shapes, tmp_path):
    "A character that the terminal lacks is escaped; `| head` ends the command without a word"
    exe,env = Path(sys.executable).with_name('contrastive-finetune'),{**os.environ, 'PYTHONIOENCODING':'ascii'}
    r = subprocess.run([exe, '--encoder', 'x', '--pct', '50'], capture_output=True, env=env)
    assert r.returncode==2 and b'0 < pct \\u2264 1 (50% is .5)' in r.stderr and r.stderr.count(b'\n')==1
    p = subprocess.Popen([exe, '--encoder', 'xresnet18', '--arch-args', 'widen=.25', '--data', shapes, '--size', '32', '--num-workers', '0'], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close()
    assert p.stderr.read()==b'' and p.wait(timeout=60)==141

def test_narrow_terminal(shapes, monkeypatch, capsys):
    "A count is never wider than the terminal, or it could not be written over"
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '30')
    recipes.finetune('xresnet18', shapes, None, 32, 16, 1, arch_args=dict(widen=.25), num_workers=0, cbs=cli.Lines(every=0))
    counts = [o for o in re.split('[\r\n]', capsys.readouterr().out) if 'training' in o]
    assert counts and max(map(len, counts))<30

# Messages of the Python functions that a command can meet, and what its user can do
said = [
    ('cannot read image a.jpg: empty; remove it, or pass skip_bad=True when making the dataloaders', '--skip-bad', 'skip_bad'),
    ('no folder train in x, which has unsup; say which hold the images by train= and valid=', 'train/ and val/', 'train='),
    ('a recipe needs a task, an objective, or both: pass task= or objective=', '--task or --objective', '='),
    ('x holds images without labels: use unlabeled_dls, or name a folder that has one folder per class', 'name a folder that has', 'unlabeled_dls'),
    ('swav needs two large views: got 1; pass views=Views(n=2, n_small=...)', '--views-args n=2', 'Views('),
    ("dino failed on views of 96 pixels (x): if it is their size, pass views=objective.views().but(size=..., small_size=...)", '--views-args size=', 'but('),
    ("cmc needs an encoder of two halves: got xresnet18; pass create_encoder('split:NAME') or split_encoder(encoder) in its place", '--arch split:NAME', 'create_encoder'),
    ('choosing C takes 3 training images of every class: the smallest has 2; pass C, say C=.01', '--c .01', 'C='),
    ('moco needs batches of 2 images or more: got bs=1', 'got --bs 1', 'bs='),
    ('with_val would train on the labels of val/: leave it out', '--with-val', 'with_val'),
    ('x has both val and valid: say which holds the validation images by valid=', 'rename or remove one', 'valid='),
    ('no folder val or valid in x, which has train; say which hold the images by train= and valid=, or set a share of the training images aside by valid_pct=.2',
     'should be in train/ and val/ (or valid/)', '='),
    ("is the class of a cat, the folder below b, or old, its own? Say class_from='top' or class_from='parent'", 'directly in its folder', 'class_from'),
    ('k must be a whole number from 1 to the number of possible neighbours: got 100 with 40; k=20 would do', '; 20 would do', 'k='),
    ('the training loader has no batch: 36 images, bs=64, and a batch that is not full is dropped; use a smaller bs, or drop_last=False', '--bs 64', 'drop_last'),
    ('3 of 9 images of the training set have no label (below 0): leave them out, or pass classes=', 'leave them out', 'classes'),
    ('uint16 values do not say what is black (here they go from 0 to 9): pass value_range=, one for the whole data set, such as (0, 1) or (0, 4095), or give 8-bit values',
     'convert them to 8 bits', 'pass value_range'),
    ('with_val=True, but x has no folder val or valid', '--with-val, but', 'True'),
]
@pytest.mark.parametrize('msg,has,has_not', said, ids=lambda o: o[:12])
def test_messages_speak_of_options(msg, has, has_not):
    opts = {a.dest:a.option_strings[-1] for c in ('pretrain','evaluate') for a in cli.command_parser(getattr(cli, c), 'x')._actions}
    s = cli.in_options(msg, opts)
    assert has in s and has_not not in s
