"A report: what it writes, that it goes on, what it refuses, and that nobody's validation labels choose anything"
import json
from html.parser import HTMLParser

import pytest
from fastai.vision.all import Image, Path, imagenet_stats, nn, noop, np, partial, pd, re, shutil, torch
from fastai_contrastive.all import *
from fastai_contrastive.report import report as module

small = dict(fractions=[.5,1.], size=32, rows='scratch,simclr', arch='xresnet_narrow', arch_args=dict(nf=16, blocks=1), epochs=1,
    seeds=2, steps=4, lrs=[1e-3,4e-3], bs=20, num_workers=0, device='cpu')

class Page(HTMLParser):
    "Every tag that is opened is closed in its turn"
    def __init__(self, text):
        super().__init__()
        self.open,self.links,self.text = [],[],''
        self.feed(text)
        assert not self.open, self.open
    def handle_starttag(self, tag, attrs):
        self.links += [v for k,v in attrs if k in ('src','href','xlink:href') and not v.startswith(('#','data:'))]
        if tag not in ('meta','img','br'): self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.links += [v for k,v in attrs if k in ('src','href') and not v.startswith(('#','data:'))]
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, data): self.text += data

@pytest.fixture(scope='module')
def made(synth, tmp_path_factory):
    "A small report, and what it said"
    said = []
    rep = report(synth, out=tmp_path_factory.mktemp('report')/'r', say=said.append, **small)
    return rep,said

def test_report(made, synth):
    "All rows with seed and commit, a page that stands alone, an encoder and a classifier by the lines that the page gives"
    rep,said = made
    assert len(rep.units)==len(Work(None, parse_rows(small['rows']), rep.plan, {}, rep.out).units())==18
    assert all(o['commit'] for o in rep.units if o['what'] in ('pretrain','tune','judge'))
    text = (rep.out/'report.html').read_text()
    page = Page(text)
    assert not page.links and not re.search(r'https?:|@import|url\(http', text)
    for o in ('Accuracy, %','Class by class','Nearest neighbours','A map of the validation images','Views','Use it','report('): assert o in page.text
    assert text.index('class="answer"')<text.index('<h2>') and rep.answer[0] in page.text
    ns = {}
    exec(use_lines(rep).replace("learn.fit_one_cycle(10, 4e-3)", '').replace("'a_picture.jpg'", repr(str(image_files(synth, 'val')[0]))), ns)
    assert ns['rep'].answer==rep.answer and ns['learn'].model[0].recipe['seed'] in (0,1)
    assert 'of it' in said[3] and said[-1].endswith('report.html')

def test_once(made):
    "The validation images are looked at after the last epoch of a fine-tuning, and by nothing that is chosen by"
    rep,_ = made
    by = {k:[o for o in rep.units if o['what']==k] for k in ('choose','tune')}
    assert {tuple(map(float, o['tried'])) for o in by['choose'] if o['seed']==0}=={(.001,.004)}
    for o in by['choose']: assert o['seed']==0 or len(o['tried'])==1 # Later seeds have what the first chose
    for o in by['tune']: assert o['lr']==next(c['lr'] for c in by['choose'] if (c['row'],c['seed'])==(o['row'],0)) and o['n_valid']==30

def test_goes_on(made, synth, monkeypatch):
    "The same again does nothing twice; a run that is gone is done again; another setting is refused before anything is touched"
    rep,_ = made
    before = {o.name:o.stat().st_mtime_ns for o in (rep.out/'rows').glob('*.json')}
    (rep.out/'rows'/'tune-scratch-1-0.5.json').unlink()
    with pytest.raises(ValueError, match='epochs: 1 then, 2 now.*take another out'): report(synth, out=rep.out, say=noop, **{**small, 'epochs':2})
    monkeypatch.setattr(Report, 'pictures', lambda self, images: {})
    report(synth, out=rep.out, say=noop, **small)
    after = {o.name:o.stat().st_mtime_ns for o in (rep.out/'rows').glob('*.json')}
    assert [k for k in after if after[k]!=before[k]]==['tune-scratch-1-0.5.json'] and set(after)==set(before)

def test_stopped(synth, tmp_path, monkeypatch):
    "Ctrl-C says what is there"
    monkeypatch.setattr(module, 'time_rows', lambda w: Costs({'simclr':.001}, .001, .001, .001))
    def _stop(self, u):
        if u.what=='choose': raise KeyboardInterrupt
        return {}
    monkeypatch.setattr(Work, '__call__', _stop)
    with pytest.raises(KeyboardInterrupt, match='1 runs that are done.*the same again goes on'): report(synth, out=tmp_path/'r', say=noop, **small)

@pytest.mark.parametrize('kw,msg', [(dict(rows='scratch,simcrl'), "Did you mean 'simclr'"), (dict(fractions=[.01]), 'leaves class'), (dict(fractions=[2]), 'is a share'),
    (dict(hours=0), 'hours must be above 0'), (dict(seeds=0), 'seeds is how many'), (dict(lrs=[0.]), 'lr must be above 0'), (dict(part_args=dict(byol={})), 'none of the rows'),
    (dict(part_args=dict(simclr=dict(tmp=1))), 'tmp'), (dict(arch='xresnet_narow'), "xresnet_narrow"), (dict(rows='scratch,published'), 'not on this machine')])
def test_refused(synth, tmp_path, kw, msg):
    "What cannot be meant is refused before a plan is written"
    with pytest.raises(ValueError, match=msg): report(synth, out=tmp_path/'r', say=noop, **{**small, **kw})
    assert not (tmp_path/'r'/'plan.json').exists()

def test_no_validation_folder(synth, tmp_path):
    "A folder of class folders: a fifth is for the end, the same with every seed, and neither pretraining nor held-out labels see it"
    shutil.copytree(synth/'train', tmp_path/'own')
    im = ReportImages(tmp_path/'own', 32, num_workers=0)
    end = set(im.valid)
    assert len(end)==10 and not end & set(im.files)
    for dls in (im.labelled(.5, 1), im.labelled(1., 2)): assert set(dls.valid_ds.items)==end
    held = im.labelled(hold_out=.3)
    for ds in (held.train_ds, held.valid_ds, im.without_labels(8).train_ds): assert not end & set(ds.items)
    assert not set(held.train_ds.items) & set(held.valid_ds.items)

def test_named_folder_above(synth):
    "A folder of unlabelled images that holds the validation images as well: they are left out, and none is there twice"
    im = ReportImages(synth, 32, synth, num_workers=0)
    assert not set(map(Path, im.extra)) & set(im.valid) and im.n_unlabelled==40+20==len(set(im.without_labels(8).train_ds.items))

def test_plan_fits():
    "More hours never give fewer seeds or epochs at that many seeds, and none takes longer than there is"
    costs,n = Costs(dict(a=1/300, b=1/100), 1/300, 1/900, 1e-3),dict(train=5000, valid=1000, unlabelled=20000)
    total = partial(plan_total, costs=costs, n=n, tuned=3, judged=3)
    plans = [(h,fit_plan(h, total, list(label_shares))) for h in (.5,1,2,4,8,16,64,400)]
    for h,p in plans: assert total(p)<=3600*h and p['shares'][0]==.01
    seeds = [p['seeds'] for _,p in plans]
    assert seeds==sorted(seeds) and seeds[0]<3 and seeds[-1]==5 and plans[-1][1]['epochs']==200
    p = fit_plan(1e3, total, [.1,1.], epochs=7, seeds=2, steps=50)
    assert (p['epochs'],p['seeds'],p['steps'],p['shares'])==(7,2,50,[.1,1.])

def test_own_task():
    "What a user defines takes part by its name, with nothing else to do"
    class OwnTurn(Rotation): pass
    try: assert parse_rows('scratch,own_turn+simclr')['own_turn+simclr'].parts==['own_turn','simclr']
    finally: del PretextTask.registry['own_turn']

def test_published(monkeypatch, tmp_path):
    "Weights that are on the disk are taken; a function that takes pretrained=True and does nothing with it has none"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert published_encoder('resnet18') is None
    from torchvision.models import resnet18, ResNet18_Weights
    f = tmp_path/'hub'/'checkpoints'/Path(ResNet18_Weights.DEFAULT.url).name
    f.parent.mkdir(parents=True, exist_ok=True)
    torch.save(resnet18().state_dict(), f)
    monkeypatch.setattr('torchvision.models._api.WeightsEnum.get_state_dict', lambda self, *a, **kw: torch.load(f))
    assert published_encoder('resnet18') is not None
    def no_such_weights(pretrained=False): return nn.Sequential(nn.Conv2d(3, 4, 3))
    assert published_encoder(no_such_weights) is None

def test_labels_and_term_with_a_cache(synth, tmp_path):
    "Labels alone in as many steps stand beside labels and a term; decoded once, the same comes out, to the last bit"
    kw = {**small, 'rows':'scratch,labels,labels+simclr', 'fractions':[.5], 'seeds':1}
    a,b = (report(synth, out=tmp_path/o, say=noop, cache=c, **kw) for o,c in (('a',False),('b',tmp_path/'pixels')))
    same = 'what','row','seed','pct','accuracy','knn','linear','steps','held','lr','classes'
    for x,y in zip(a.units, b.units): assert {k:x.get(k) for k in same}=={k:y.get(k) for k in same}
    by = {o['row']:o for o in a.units if o['what']=='joint'}
    assert by['labels']['steps']==by['labels+simclr']['steps']>0 and len(list((tmp_path/'pixels').glob('*')))
    assert any('beside labels alone in as many steps' in o for o in a.answer)

def test_one_precision_for_all(made, monkeypatch):
    "Chosen once, by what a pass takes, and the rows say which"
    rep,_ = made
    assert rep.head['asked']['precision']=='auto' and rep.settings['precision'] in ('fp32','bf16')
    assert {o['precision'] for o in rep.units if o['what'] in ('pretrain','tune')}=={rep.settings['precision']}
    im,s = ReportImages(Path(rep.settings['data']), 32, num_workers=0),dict(bs=8, arch='xresnet_narrow', arch_args=dict(nf=16, blocks=1))
    monkeypatch.setattr(module, 'native_bf16', lambda d: True)
    for secs in (dict(fp32=2., bf16=1.), dict(fp32=1., bf16=2.)):
        monkeypatch.setattr(module, 'pass_seconds', lambda m, x: secs)
        assert module._precision_here(im, s)==min(secs, key=secs.get)

def test_a_term_is_held_against_as_many_steps():
    "Beside labels alone in as many steps, if there is such a row; else beside the short fine-tuning, which is said"
    accs = {('scratch','tuned'):.5, ('labels','joint'):.6, ('labels+simclr','joint'):.7}
    t = pd.DataFrame([dict(row=r, measure=m, pct=.1, seed=s, acc=a+s/100) for (r,m),a in accs.items() for s in range(3)])
    said = [[o for o in report_answer(t, names, .1, 100, 100) if 'at once' in o] for names in (['scratch','labels','labels+simclr'], ['scratch','labels+simclr'])]
    assert len(said[0])==len(said[1])==1 and 'as many steps: +10.0' in said[0][0] and 'fewer steps: +20.0' in said[1][0]

def pictures(path, classes, n=4, sets=('train','val'), size=20):
    "A folder of drawn squares, `n` of each class, or as many as `n` says by set"
    for s in sets:
        for i,c in enumerate(classes):
            (path/s/c).mkdir(parents=True)
            for k in range(n[s] if isinstance(n, dict) else n):
                x = np.full((size,size,3), 40*i+k, np.uint8)
                x[k%size] = 255
                Image.fromarray(x).save(path/s/c/f'{k}.png')
    return path

tiny = dict(small, size=16, arch_args=dict(nf=16, blocks=1), seeds=1, steps=2, lrs=[1e-3], rows='scratch,rotation', say=noop)

def test_other_images(tmp_path):
    "A report does not go on with other images, classes or loaders: what is done could not be compared with what follows"
    p = pictures(tmp_path/'d', 'ab', 6)
    rep = report(p, out=tmp_path/'r', **tiny)
    (rep.out/'rows/tune-rotation-0-1.json').unlink()
    with pytest.raises(ValueError, match='norm: nothing then, None now'): report(p, out=rep.out, norm=None, **tiny)
    pictures(p, 'c', 1, ['train'])
    with pytest.raises(ValueError, match='training images.n: 12 then, 13 now.*Take another out='): report(p, out=rep.out, **tiny)
    shutil.rmtree(p/'train/c')
    assert len(report(p, out=rep.out, class_from=None, norm=imagenet_stats, **dict(tiny, num_workers=0)).of('tune', 'rotation'))==2 # As by default

def test_one_rate_diverges(tmp_path, monkeypatch):
    "A learning rate that diverges is not chosen, and costs nothing else; a row is lost where all of them do"
    real = module.Work._fit
    def fit(self, u, pct, lr, *args, **kwargs):
        if u.what=='choose' and (lr==9. or u.row=='rotation'): raise Diverged(f'lr {lr}')
        return real(self, u, pct, lr, *args, **kwargs)
    monkeypatch.setattr(module.Work, '_fit', fit)
    rep = report(pictures(tmp_path/'d', 'ab', 6), out=tmp_path/'r', **dict(tiny, lrs=[9.,1e-3]))
    chosen, = rep.of('choose', 'scratch')
    assert chosen['lr']==1e-3 and chosen['tried']['9.0'] is None and len(rep.of('tune', 'scratch'))==2
    assert not rep.of('tune', 'rotation') and 'left out: rotation, seed 0' in report_html(rep)

@pytest.mark.parametrize('n,sets,classes,msg', [(1, ('train','val'), 'ab', 'one training image: give one of them a second'),
    (dict(train=4, val=2), ('train','val'), 'ab', None)])
def test_too_few(tmp_path, n, sets, classes, msg):
    "What leaves nothing to choose or judge by is refused before there is a plan; two images a class are enough to judge by"
    p = pictures(tmp_path/'d', classes, n, sets)
    if msg:
        with pytest.raises(ValueError, match=msg): report(p, out=tmp_path/'r', **tiny)
        assert not (tmp_path/'r/plan.json').exists()
    shutil.rmtree(p/'val/b')
    with pytest.raises(ValueError, match='one training image|all of class a'): report(p, out=tmp_path/'r', **tiny)

def test_folders(tmp_path):
    "Deeper folders by `class_from`; unlabelled images once, by whatever path; names that look like pictures or are no UTF-8"
    p = pictures(tmp_path/'d', ['a/x','a/y','b/z'], 3)
    with pytest.raises(ValueError, match="class_from='top'"): ReportImages(p, 16)
    assert (im := ReportImages(p, 16, class_from='top')).vocab==['a','b'] and len(im.valid_classes)==2
    (p/'unsup').mkdir()
    (p/'unsup/1.png').symlink_to(p/'val/a/x/0.png')
    for o in (2,3): shutil.copy(p/'val/a/x/1.png', p/f'unsup/{o}.png')
    (p/'unsup/4.png').symlink_to(p/'unsup/2.png')
    (tmp_path/'again').symlink_to(p/'unsup')
    assert len(ReportImages(p, 16, tmp_path/'again', class_from='top').extra)==2
    q = pictures(tmp_path/'e', ['logo.png','scan.tif','caf\udce9'], {'train':20, 'val':2})
    im = ReportImages(q, 16, num_workers=0, device='cpu')
    for pct,n in ((.05,3),(.1,6),(1.,60)):
        tr = im.labelled(pct, bs=3).train_ds
        assert len(tr)==im.n_labels(pct)==n and set(map(int, tr.tls[1]))=={0,1,2}
    assert im.n_labels(.05, .2)==3 and im.n_labels(1., .2)==48
    rep = report(q, out=tmp_path/'r', **dict(tiny, fractions=[1/3,1.]))
    assert rep.plan['shares']==[.333333,1.] and '–' not in rep.accuracies().filter(like='linear').to_numpy() and rep.n_labels=={.333333:21, 1.:60}
    assert 'caf\\udce9' in (rep.out/'report.html').read_text()

def frame(**rows):
    "A frame of fine-tuned accuracies, by row a list over the seeds"
    return pd.DataFrame([dict(row=k.replace('_','+'), seed=i, measure=m, pct=.1, acc=a) for k,v in rows.items()
        for i,a in enumerate(v) if a is not None for m in ('joint' if k.startswith('labels') else 'tuned','held')])

def test_answer_without_scratch():
    "What there is is compared; and means and difference are over the same seeds"
    says = lambda t: ' '.join(report_answer(t, [*dict.fromkeys(t.row)], .1, 100, 100))
    assert 'helps' in (s := says(frame(simclr=[.4,.41,.42], rotation=[.5,.51,.52]))) and 'where simclr has 41.0%' in s
    assert 'does harm' not in says(frame(simclr=[.5,.51,.52], rotation=[.4,.41,.42]))
    assert 'Labels alone for longer, beside labels alone in fewer steps: +10.0' in says(frame(labels=[.5,.6], scratch=[.4,.5]))
    assert 'rotation first and the labels afterwards: +10.0' in says(frame(rotation=[.4,.4], labels_rotation=[.5,.5]))
    assert '39.5% of the validation images instead of 35.0%, in the 2 seeds' in says(frame(scratch=[.2,.5,.8], simclr=[.25,.54,None]))

def test_worth_of_a_dip():
    "A curve that dips by luck does not make a gain a loss, and one image more in both of two seeds is no gain"
    w = labels_worth([10,100,1000], [.5,.4017,.8], 100, Paired(.053,.014,3,'ahead'))
    assert 1<w.times<2 and w.lo>1
    assert labels_for([10,100,1000], [.4,.5,.8], .5)==(100.,'')
    a,b = {0:.5,1:.6},{0:.5-1/30,1:.6-1/30}
    assert paired(a, b).verdict=='ahead' and paired(a, b, step=1/30).verdict=='within luck'

def test_memory_and_minutes_are_of_one_run(tmp_path):
    "A run is not charged with the memory of one before it in the same process, nor loses the time before an interruption"
    def run(u):
        x = torch.ones(u.pct<<18) # MB
        return dict(kept=float(x.sum()), **(dict(seconds=99.) if u.row=='b' else {}))
    us = [Unit('judge', r, 0, mb) for r,mb in (('a',600),('b',1))]
    share_units(us, tmp_path, lambda u: [], run)
    a,b = sorted(read_units(tmp_path), key=lambda o: o['row'])
    assert a['memory']>b['memory']+.4 and b['seconds']==99. and a['seconds']<60

def test_plan_of_labels_rows():
    "Labels and a term take many short epochs: they are planned for; and shares are never thinned to one of several"
    n,p = dict(train=100, valid=10, unlabelled=1000),dict(epochs=10, shares=[.1,1.], steps=10, n_lrs=1)
    s = plan_seconds(p, Costs(dict.fromkeys(['simclr','labels+simclr'], .001), .001, .001, .001), n)['pretrain']
    assert s['labels+simclr']-s['simclr']==pytest.approx(.25*10*99)
    from fastai_contrastive.report.plan import _thinner
    assert all(len(o)>1 for o in _thinner([.1,.2,.5,1.], False))

def test_parts_in_order():
    "What is beside a task gets the weight, however the row is written; a part with a required setting can be a row"
    r = row_recipe(report_row('simclr+rotation'), weight=.1)
    assert (r.name,r.task,r.objective,r.weight)==('rotation+simclr','rotation','simclr',.1)
    assert len(parse_rows('scratch,simclr+rotation,rotation+simclr'))==2
    class Asks(Rotation):
        name = 'asks'
        def __init__(self, k): super().__init__()
    try: assert row_recipe(report_row('asks'), dict(asks=dict(k=2))).task=='asks'
    finally: PretextTask.registry.pop('asks')

def test_settings_are_looked_at_first(synth, tmp_path):
    "A wrong setting of views is refused before there is a plan, and shares may be an array"
    with pytest.raises(ValueError, match='views_args'): report(synth, out=tmp_path/'r', views_args=dict(heu=1), **tiny)
    assert not (tmp_path/'r').exists() or not (tmp_path/'r/plan.json').exists()
    with pytest.raises(ValueError, match='leaves class'): report(synth, out=tmp_path/'r', **dict(tiny, fractions=np.array([.001])))
