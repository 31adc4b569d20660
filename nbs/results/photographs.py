r"""Photographs: what do two pretext tasks, SimCLR and their sums teach a network, and what does each add to few labels?

Imagenette, every training image without its label. First, pretraining: the same encoder, images and steps in each row,
judged by neighbours, a linear probe, and fine-tuning with 1% and 10% of the labels. Then labels and a term: a tenth of
the labels, and the same loss on all images beside cross-entropy, the same steps again (one of the labels' batches and
one of the images' batches each). Each (row, seed) is a job that writes one JSON file into `--out`: the script can be
stopped and started again, and several copies share the work. What a pretraining has reached stays in `weights/`.

    OMP_NUM_THREADS=1 python nbs/results/photographs.py & OMP_NUM_THREADS=1 python nbs/results/photographs.py & wait
    python nbs/results/photographs.py --table       # the tables of what is there
    python nbs/results/photographs.py --put         # ... into the page tutorials/worth

A row takes a core some 10 (scratch) to 35 minutes (a task beside SimCLR): 5 hours of a core in all. On a GPU, images
of 128 pixels, 100 epochs and five seeds:

    python nbs/results/photographs.py --size 128 --bs 256 --arch xresnet34 --arch-args '{}' --short-side 0 \
        --epochs 100 --seeds 5 --num-workers 12 --out nbs/results/photographs-128px

No setting was chosen on the validation images. Weights are 1, as in S4L (arXiv 1905.03670), which trains with labels
and a rotation or an exemplar loss on all images; lr, weight decay and the settings of tasks and objective are the
library's. Epochs and batch of fine-tuning are those of two that are better *from scratch*, on a tenth of the training
images held out (`--looks`), so that the row that must be beaten is as good as it can be: with 1% of the labels 32.1%
after 40 epochs and 33.1 after 100, with 10% of them 59.2 after 20 and 60.1 after 40.

The encoder is small (0.3M weights): one four times as large takes three times as long a step.
"""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastcore.script import *
from shared import *
from imagewang import rows
from fastai_contrastive.recipes import provenance

terms = dict(rotation=lambda dl: PretextTerm(Rotation(), dl=dl),
             inpainting=lambda dl: PretextTerm(Inpainting(), dl=dl),
             simclr=lambda dl: ContrastiveCallback(SimCLR(), dl=dl))
joint = {'labels':None, **{f'labels+{k}':f for k,f in terms.items()}}
few = dict(acc1=.01, acc10=.1)
kept = 'size','bs','arch','arch_args','epochs','lr','ft','ft_lr','short_side'

def images(a):
    "The folder, and what loaders share"
    return small('imagenette', a.short_side),dict(size=a.size, num_workers=a.num_workers)

def unlabelled(a):
    "All training images"
    path,common = images(a)
    return unlabeled_dls(path, folders='train', valid_pct=0, bs=a.bs, **common)

def new_encoder(seed, a):
    set_seed(seed)
    return create_encoder(a.arch, **a.arch_args)

def pretrained(name, seed, a):
    "The encoder of a row, from `weights/` if its training has come to an end before, and what is kept of the training"
    if not rows[name]: return new_encoder(seed, a),{}
    r = Recipe(data='imagenette', size=a.size, bs=a.bs, arch=a.arch, arch_args=a.arch_args, epochs=a.epochs, lr=a.lr,
               seed=seed, **rows[name])
    out = Path(a.out)/'weights'/f'{name}-{seed}.safetensors'
    row = out.with_suffix('.json')
    if not (row.exists() and json.loads(row.read_text())['finished']):
        set_seed(seed) # The order of the images is drawn from when their loader is made
        pretrain(r, out, unlabelled(a), ChannelsLast())
    got = json.loads(row.read_text())
    if got!={**got, **json.loads(json.dumps(asdict(r)))}: raise ValueError(f'{row} was trained otherwise: remove it')
    return load_encoder(out),{'pretrain':{k:got[k] for k in ('images','steps','seconds','columns','values','commit')}}

def judged(enc, a):
    "Neighbours and a linear probe: all training labels, frozen features"
    path,common = images(a)
    ev = evaluate(deepcopy(enc), dls=labelled_dls(path, bs=a.bs, **common), pbar=False)
    return dict(knn=ev['knn'], linear=ev['linear'])

def tuned(enc, k, seed, a, **kwargs):
    "Fine-tuning with few labels, the validation images looked at once, after the last epoch"
    path,common = images(a)
    bs,epochs = a.ft[k]
    set_seed(seed)
    dls = labelled_dls(path, pct=few[k], seed=seed, bs=bs, **common, **kwargs)
    return fit(enc, dls, epochs, a.ft_lr, seed, k)

def fit(enc, dls, epochs, lr, seed, k, *cbs):
    cbs = [LastEpochOnly(), ChannelsLast(), *cbs]
    learn,ft = finetune(deepcopy(enc), dls=dls, epochs=epochs, lr=lr, seed=seed, cbs=cbs)
    return learn,{k:ft['accuracy'], f'{k}_labels':ft['n_labels'], f'{k}_steps':learn.train_iter}

def labels_and_term(name, seed, a):
    "A tenth of the labels beside a term on all images: as many steps as pretraining has"
    path,common = images(a)
    set_seed(seed)
    dls,every = labelled_dls(path, pct=.1, seed=seed, bs=a.bs, **common),unlabelled(a).train
    cbs = [joint[name](every)] if joint[name] else []
    epochs = max(1, round(a.epochs*len(every)/len(dls.train)))
    learn,res = fit(new_encoder(seed, a), dls, epochs, a.lr, seed, 'acc10', *cbs)
    return {**res, **judged(learn.model[0], a)}

def job(name, seed, a):
    "One row with one seed"
    row = dict(row=name, seed=seed, **{k:getattr(a, k) for k in kept})
    if name in joint: return {**row, **labels_and_term(name, seed, a), **provenance(), 'command':command()}
    enc,pre = pretrained(name, seed, a)
    row.update(pre, **judged(enc, a))
    for k in few: row.update(tuned(enc, k, seed, a)[1])
    return {**row, **provenance(), 'command':command()}

def looks(a):
    "From scratch, on a tenth of the training images held out: which epochs and batch for fine-tuning?"
    for k,bs,epochs in (('acc1',32,40), ('acc1',32,100), ('acc10',64,20), ('acc10',64,40)):
        b = SimpleNamespace(**{**vars(a), 'ft':{k:(bs,epochs)}})
        print(k, bs, epochs, tuned(new_encoder(0, a), k, 0, b, valid_pct=.1)[1], flush=True)

def tables(out):
    "The two tables: after pretraining, and of labels and a term"
    got = read_rows(out)
    cols = dict(knn='kNN', linear='linear', acc1='1% of the labels', acc10='10% of the labels')
    after = {k:cols[k] for k in ('acc10','knn','linear')}
    return [mean_table(got, rows, cols), mean_table(got, joint, after, 'trained on')]

def table(out): return '\n\n'.join(tables(out))

def put(out):
    "The tables in the place of those that the page has"
    fn = Path(__file__).parents[1]/'tutorials/worth.ipynb'
    nb = json.loads(fn.read_text(encoding='utf-8'))
    for t in tables(out):
        cell = next(c for c in nb['cells'] if t.splitlines()[0]+'\n' in c['source'])
        cell['source'] = in_place(''.join(cell['source']), t).splitlines(True)
    write_notebook(nb, fn)

@call_parse
def main(
    size:int=64, # Pixels
    bs:int=128, # Images a batch, in pretraining, and of the labels and the images beside each other
    arch:str='xresnet_narrow', # Encoder
    arch_args:str='{"nf": 128, "blocks": 1}', # JSON, passed to the arch
    epochs:int=12, # Of pretraining
    lr:float=4e-3, # Highest learning rate, of pretraining and of labels and a term
    ft:str='{"acc1": [32, 100], "acc10": [64, 40]}', # JSON: batch and epochs of fine-tuning
    ft_lr:float=4e-3, # Of fine-tuning
    short_side:int=80, # Resize the files once to this shorter side; 0 for not
    seeds:int=2, # 0, 1, ...
    only:str='', # Names of rows to run, separated by commas; all if empty
    num_workers:int=0, # Loading processes
    out:str='nbs/results/photographs-64px', # Where the rows go
    looks:store_true=False, # Only try what fine-tuning from scratch wants, on held-out training images
    table:store_true=False, # Only print the tables
    put:store_true=False, # Only write the tables into the page `tutorials/worth`
):
    "Run what is missing of the experiment, and print its tables."
    fs = globals()
    a = SimpleNamespace(**{**locals(), 'arch_args':json.loads(arch_args), 'ft':json.loads(ft)})
    if table: return print(fs['table'](out))
    if put: return fs['put'](out)
    if looks: return fs['looks'](a)
    names = only.split(',') if only else [*rows, *joint]
    todo = [(o,s) for group in (rows, joint) for s in range(seeds) for o in group if o in names]
    run_missing(todo, out, lambda name,seed: job(name, seed, a))
    print(fs['table'](out))
