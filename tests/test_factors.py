"What an encoder has kept: scores against direct computations, the honest choice of regularisation, the data, bad input"
import inspect
import pytest
from fastai.vision.all import *
from fastai_contrastive.drawn import *
from fastai_contrastive.encoder import *
from fastai_contrastive.evaluation import factors
from fastai_contrastive.evaluation.factors import *
from fastai_contrastive.evaluation.factors import _probe_dl, _probe_table, _read_factor

for o in [o for o in globals() if o.startswith('test')]: del globals()[o]   # fastcore's `test_eq` and the like are no tests for pytest to collect

@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return synth_images(tmp_path_factory.mktemp('f')/'drawn', n_train=2, n_unsup=170, n_valid=1, size=32)

class Peek(nn.Module):
    "An encoder that is any function of the batch"
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

def probe(enc, path, n=100, **kw): return probe_factors(enc, path, n=n, pbar=False, **kw)

def test_scores_are_sklearns():
    "One factor of numbers and one of classes, by hand; the mean over the columns of a factor"
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import r2_score
    from fastai_contrastive.evaluation.linear import choose_C
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200,6))*[1,5,.1,1,1,1]+3
    t = pd.DataFrame({'a':x[:,0]+.1*rng.normal(size=200), 'b':rng.normal(size=200), 'c':np.where(x[:,1]>3, 'yes', 'no')})
    z = (x-x[:120].mean(0))/x[:120].std(0)
    fits = [RidgeCV(np.logspace(-2, 6, 17)).fit(z[:120], t[o][:120]).predict(z[120:]) for o in 'ab']
    each = [100*r2_score(t[o][120:], p) for o,p in zip('ab', fits)]
    assert _read_factor(x, t[['a']], 120, 0)==pytest.approx(each[0], abs=1e-6) and each[0]>95 and each[1]<20
    both = _read_factor(x, t[['a','b']], 120, 0)
    assert both==pytest.approx(np.mean([100*r2_score(t[o][120:], p) for o,p in
        zip('ab', RidgeCV(np.logspace(-2, 6, 17)).fit(z[:120], t[['a','b']][:120]).predict(z[120:]).T)]))
    y = (t['c']=='yes').to_numpy().astype(int)
    want = LogisticRegression(C=choose_C(x[:120], y[:120]), max_iter=1000).fit(z[:120], y[:120]).score(z[120:], y[120:])
    assert _read_factor(x, t[['c']], 120, 0)==pytest.approx(100*want) and want>.9

def test_nothing_is_chosen_by_what_is_judged():
    "Noise that fits the judging images has no way in: their targets change the score and not the model"
    rng = np.random.default_rng(0)
    x,t = rng.normal(size=(90,40)),pd.DataFrame({'a':rng.normal(size=90)})
    made = []
    class Keep:
        def __init__(self, m): self.m = m
        def fit(self, x, y): made.append((x.copy(),y.copy())); return self.m.fit(x, y)
    was = factors._ridge
    try:
        factors._ridge = lambda: Keep(was())
        _read_factor(x, t, 30, 0)
    finally: factors._ridge = was
    assert len(made)==1 and np.array_equal(made[0][0], x[:30]) and np.array_equal(made[0][1], t.to_numpy()[:30])

def test_reads_what_is_there(drawn):
    "An encoder that gives the border's colour; one that gives nothing; halves that share no image"
    border = Peek(lambda x: torch.cat([x[...,:2].mean((2,3)), x[...,-2:].mean((2,3)), x[...,:2,:].mean((2,3))], 1))
    r = probe(border, drawn)
    assert list(r)==['shape',"ground's colour",'size','turn','place'] and all(type(o) is float for o in r.values())
    assert r["ground's colour"]>60 and r['shape']<30 and r['turn']<20
    r = probe(Peek(lambda x: torch.ones(len(x), 3)), drawn, factors=['size','place'])
    assert all(-20<o<=0 for o in r.values()) and list(r)==['size','place']
    assert 0<=probe(border, drawn, factors="object's texture")["object's texture"]<=100
    t = _probe_table(drawn, 100, 0)
    assert len(t)==200==t.file.nunique() and not t.file.equals(_probe_table(drawn, 100, 1).file)

def test_same_again_and_nothing_disturbed(drawn):
    enc = create_encoder(xresnet18, widen=.125).train()
    before = [m.training for m in enc.modules()],{k:v.clone() for k,v in enc.state_dict().items()},get_random_states()
    a = probe(enc, drawn)
    after = [m.training for m in enc.modules()],enc.state_dict(),get_random_states()
    assert before[0]==after[0] and all(torch.equal(v, after[1][k]) for k,v in before[1].items())
    assert before[2]['random_state']==after[2]['random_state'] and torch.equal(before[2]['torch_state'], after[2]['torch_state'])
    assert probe(enc, drawn)==a

@pytest.mark.parametrize('kind', ['file','learner','module'])
def test_images_come_as_the_encoder_knows_them(drawn, kind):
    "No warning, and the pixels are normalised by the encoder's own statistics, else by ImageNet's"
    half = dict(mean=[.5]*3, std=[.25]*3)
    enc = m = create_encoder(xresnet18, widen=.125)
    if kind=='file': enc.stats = half
    if kind=='learner':
        from fastai_contrastive.data import synth_dls
        dls = synth_dls(drawn, 32, 8, norm=([.5]*3,[.25]*3))
        enc = Learner(dls, nn.Sequential(m, nn.Linear(m.nf, 10)), CrossEntropyLossFlat())
    f = drawn/synth_factors(drawn).file[0]
    x = _probe_dl(enc, m, [f], 32, 8).one_batch()[0]
    mean,std = ([.5]*3,[.25]*3) if kind!='module' else imagenet_stats
    want = (torch.from_numpy(np.array(Image.open(f))).permute(2,0,1)/255-tensor(mean)[:,None,None])/tensor(std)[:,None,None]
    torch.testing.assert_close(x[0].as_subclass(Tensor), want)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        probe(enc, drawn, n=20, factors='size')

def test_default_images(tmp_path, monkeypatch, drawn):
    "Drawn once, kept, of a seed that is nobody's, and of the size that is asked for"
    monkeypatch.setattr(factors, 'fastai_path', lambda _: tmp_path)
    m,calls = nn.AdaptiveAvgPool2d(4),[]
    draw = factors.synth_images
    monkeypatch.setattr(factors, 'synth_images', lambda *args, **kw: calls.append(kw) or draw(*args, **kw))
    a = probe_factors(m, n=30, size=24, factors='size', pbar=False)
    folder, = tmp_path.iterdir()
    assert Image.open(next((folder/'unsup').iterdir())).size==(24,24) and len(synth_factors(folder))==60
    when = folder.stat().st_mtime_ns
    assert probe_factors(m, n=30, size=24, factors='size', pbar=False)==a and folder.stat().st_mtime_ns==when
    assert calls[0]['seed']>1e9 and calls[0]['n_train']==calls[0]['n_valid']==0
    ours,theirs = (set(o.ground_r) for o in (synth_factors(folder),synth_factors(drawn)))
    assert not ours & theirs

@pytest.mark.parametrize('kw,says', [(dict(factors='colour'), "no factor 'colour': there are shape, ground's colour"), (dict(factors=[]), 'no factors'),
    (dict(n=101), 'pass n=100 or less'), (dict(n=1), 'got 1'), (dict(n=2.5), 'got 2.5')])
def test_bad_settings(drawn, kw, says):
    with pytest.raises(ValueError, match=says): probe(nn.AdaptiveAvgPool2d(1), drawn, **kw)

def test_bad_encoders_and_folders(drawn, tmp_path):
    with pytest.raises(TypeError, match='load_encoder'): probe('w.safetensors', drawn)
    with pytest.raises(ValueError, match='takes 1'): probe(create_encoder(xresnet18, n_in=1, widen=.125), drawn)
    with pytest.raises(ValueError, match='diverged'): probe(Peek(lambda x: x.mean((2,3))*float('nan')), drawn)
    with pytest.raises(FileNotFoundError, match='no table of factors'): probe(nn.AdaptiveAvgPool2d(1), tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder'): probe(nn.AdaptiveAvgPool2d(1), tmp_path/'none')

def test_is_in_all():
    from fastai_contrastive import all as us
    assert us.probe_factors is probe_factors and us.drawn_factors is drawn_factors and us.synth_factors is synth_factors
    assert us.plot_factors
