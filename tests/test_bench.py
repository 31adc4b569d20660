"The benchmark measures what it says: whole steps, beside the passes alone"
import json

import pytest, torch
from fastai.vision.all import Callback, nn
from fastai_contrastive import bench as B, cli, growth as G
from fastai_contrastive.core import ContrastiveCallback
from fastai_contrastive.data import synth_images

@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    path = synth_images(tmp_path_factory.mktemp('data')/'shapes', n_train=4, n_unsup=0, n_valid=2, size=32)
    return dict(data=path, size=32, bs=8, arch='xresnet18', arch_args=dict(widen=.25), num_workers=0)

@pytest.mark.parametrize('case', B.bench_cases)
def test_case(tiny, case):
    row = B.bench_case(case, n=2, repeats=2, **tiny)
    assert 0<row['ratio']<2 and len(row['ratios'])==2 and 0<=row['waiting']<1
    assert row['limit']>0 and row['learner']>0 and (row['case'],row['n'],row['repeats'])==(case,2,2)

@pytest.mark.parametrize('case', ['supcon','rotation+supcon','labels+supcon','pirl','cmc','rotation+cmc','labels+cmc','moco','dino','cpc'])
def test_objectives_of_other_needs(tiny, case):
    "Labels, the numbers of the images, an encoder of its own kind, a teacher: alone, beside a task and beside labels"
    row = B.bench_case(case, n=1, repeats=1, **{**tiny, 'size':64 if case=='cpc' else 32})
    assert row['ratio']>0 and row['case']==case

class Count(Callback):
    order = 98
    def before_fit(self): self.steps,self.valid = 0,0
    def after_batch(self):
        if self.training: self.steps += 1
        else: self.valid += 1

@pytest.mark.parametrize('case', B.bench_cases)
def test_clock_and_limit(tiny, case):
    "A block is n+1 steps without validation; the limit passes through encoder, heads and task head in training mode"
    learn,clock,count = B.bench_learner(case, **tiny),B.StepClock(2),Count()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=[clock, B._Arrival(clock), count])
    assert (count.steps,count.valid)==(3,0) and clock.seconds>clock.waited>0
    step,heads = B.limit_step(learn),learn._grab_cbs(ContrastiveCallback)[0].objective
    bn = next(o for o in learn.model.modules() if isinstance(o, nn.BatchNorm2d))
    ws,stats = [p.detach().clone() for p in learn.model.parameters()],bn.running_mean.clone()
    for _ in range(2): step()
    assert learn.model.training and heads.training and not torch.equal(stats, bn.running_mean)
    assert all(p.grad is not None and p.grad.abs().sum()>0 for m in (learn.model[0],heads) for p in m.parameters() if p.ndim>1)
    if '+' in case: assert any(p.grad is not None for p in learn.model[1].parameters())
    assert all(torch.equal(a, b) for a,b in zip(ws, learn.model.parameters())), 'the limit has no optimizer'

@pytest.mark.parametrize('case,msg', [('simcrl',"'simclr'"), ('rotatoin+simclr',"'rotation'"), ('labels+rotation+simclr','one task or labels')])
def test_unknown_case(tiny, case, msg):
    with pytest.raises(ValueError, match=msg): B.bench_learner(case, **tiny)

def test_too_few_batches(tiny):
    with pytest.raises(ValueError, match='smaller n or bs'): B.bench_case('simclr', n=5, **tiny)

def test_all_cases_are_looked_at_first(tiny, monkeypatch):
    "A slip in the last case does not cost the first"
    monkeypatch.setattr(B, 'bench_case', lambda *a, **k: pytest.fail('measured before the mistake was found'))
    for cases in (['simclr','simcrl'], ['simclr','rotatoin+simclr']):
        with pytest.raises(ValueError, match='Did you mean'): B.bench_rows(cases, n=1, repeats=1, **tiny)
    with pytest.raises(ValueError, match='repeats must be 1 or more'): B.bench_rows(['simclr'], n=1, repeats=0, **tiny)

def test_command(tiny, tmp_path, capsys):
    was = torch.get_num_threads()
    kw = {**tiny, 'data':str(tiny['data'])}
    rows = cli.bench('simclr,labels+simclr', n=2, repeats=1, threads=1, out=str(tmp_path/'b'), **kw)
    assert torch.get_num_threads()==was
    assert json.loads((tmp_path/'b.json').read_text())==rows
    for k in 'kind data size arch bs num_workers threads case n repeats limit learner ratio ratios waiting commit torch device'.split(): assert k in rows[0]
    out = capsys.readouterr().out
    for r in rows: assert any(l.split()==[str(r[k]) for k in ('case','limit','learner','ratio','waiting')] for l in out.split('\n'))

def test_compiled(tiny, monkeypatch):
    "Compiled and as written take turns, and what that brings stands in the row"
    made = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self: (made.append(self), setattr(self, '_compiled_call_impl', self._call_impl)))
    row = B.bench_case('rotation+simclr', n=2, repeats=2, compiled=True, **tiny)
    assert row['compile_gain']>0 and len(made)==1
    with B._uncompiled(made[0]): assert made[0]._compiled_call_impl is None
    assert made[0]._compiled_call_impl
    assert 'compile_gain' not in B.bench_case('simclr', n=1, repeats=1, **tiny)

def test_growth(tmp_path, capsys):
    "Every axis, a point in a process of its own, whose memory is not that of the large one that starts it; what cannot be meant is found first"
    kw = dict(size=32, arch='xresnet_narrow', arch_args=dict(nf=16, blocks=1), bs=8, threads=1)
    rows = G.growth_rows('batch,images', values=dict(batch=[8], images=[40]), n=2, **kw)
    assert [(o['axis'],o['value']) for o in rows]==[('batch',8),('images',40)] and all(o['mb']>=0 for o in rows)
    assert rows[0]['seconds']>0 and rows[0]['mb']>1 and all(rows[1][k]>0 for k in ('listing','cache','knn','linear'))
    for axis,v in (('size',48),('views',3),('terms',2)): G.growth_learner(axis, v, **{k:o for k,o in kw.items() if k!='threads'})
    with pytest.raises(ValueError, match='no axis is called'): cli.bench(grow='batch,bach', out=str(tmp_path/'g'))
    with pytest.raises(ValueError, match='leave out data, compiled'): cli.bench(grow='batch', data='imagenette', compiled=True, out=str(tmp_path/'g'))
    with pytest.raises(ValueError, match='xresnet_narow'): cli.bench(grow='batch', arch='xresnet_narow', out=str(tmp_path/'g'))
    assert not (tmp_path/'g.json').exists()
