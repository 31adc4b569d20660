"Plots: how many axes, what the titles say, and that the pictures are the right ones"
import pytest
import matplotlib
matplotlib.use('agg')
from matplotlib.colors import to_rgba
from fastai.vision.all import *
from fastai_contrastive.plots import *

for o in [o for o in globals() if o.startswith('test')]: del globals()[o]   # fastcore's `test_eq` and the like are no tests for pytest to collect

def _image(i): return PILImage.create(np.full((8,8,3), (i*7)%256, dtype=np.uint8))

def make_dls(n=24, n_valid=6, labels=True):
    "Images of one grey each; its level grows with the index"
    tfms = [[_image]] + ([[lambda i: 'even' if i%2==0 else 'odd', Categorize()]] if labels else [])
    dsets = Datasets(list(range(n)), tfms, splits=(list(range(n_valid,n)), list(range(n_valid))), n_inp=1)
    return dsets.dataloaders(bs=8, num_workers=0, device='cpu', after_item=[ToTensor(), FlipItem()],
        after_batch=[IntToFloatTensor(), Normalize.from_stats(*imagenet_stats)])

def overlapping():
    "Files, some of which are trained and validated on"
    dsets = Datasets([Path(f'{i}.png') for i in range(24)], [[lambda o: _image(int(o.stem))]], splits=(list(range(24)),[3,4,5]), n_inp=1)
    return dsets.dataloaders(bs=8, num_workers=0, device='cpu', after_item=[ToTensor()],
        after_batch=[IntToFloatTensor(), Normalize.from_stats(*imagenet_stats)])

def grey(x):
    "An encoder whose cosine falls with the difference in grey"
    g = x[:,0].mean((1,2))*imagenet_stats[1][0]+imagenet_stats[0][0]
    return torch.stack([g.cos(), g.sin()], 1)

class Grey(nn.Module):
    def forward(self, x): return grey(x)

def shown(ax):
    im = ax.images[0].get_array()
    return round(float(np.asarray(im).mean())/7)

@pytest.fixture(autouse=True)
def no_figures_left():
    plt.close('all')
    yield
    assert not plt.get_fignums()

def test_neighbours_are_the_right_ones():
    dls = make_dls()
    fig = show_neighbours(Grey(), dls, n=4, k=3, pbar=False)
    rows = np.array(fig.axes).reshape(4,4)
    queries = [shown(r[0]) for r in rows]
    assert set(queries)<=set(range(6)) and len(set(queries))==4
    for r,q in zip(rows,queries):
        assert [shown(a) for a in r[1:]]==[6,7,8]
        assert r[0].get_title()==('odd' if q%2 else 'even')
        for a,i in zip(r[1:], (6,7,8)):
            assert a.get_title()==f"{'odd' if i%2 else 'even'} {math.cos((i-q)*7/255):.2f}"
            assert a.title.get_color()==('g' if i%2==q%2 else 'r')

def test_neighbours_seed_and_state():
    dls = make_dls()
    state = random.getstate(),torch.get_rng_state(),np.random.get_state()[1].copy()
    a,b,c = ([shown(ax) for ax in show_neighbours(Grey(), dls, n=3, k=1, seed=s, pbar=False).axes[::2]] for s in (0,0,1))
    assert a==b and a!=c
    assert random.getstate()==state[0] and torch.equal(torch.get_rng_state(), state[1]) and (np.random.get_state()[1]==state[2]).all()

def test_names_are_no_formulas():
    "Dollars in the name of a class are dollars"
    dls = make_dls()
    dls.vocab.items = [r'$x$ and $\frac$','$']
    fig = show_neighbours(Grey(), dls, n=2, k=1, pbar=False)
    fig.canvas.draw()
    assert {o.get_title().split(' 1')[0].split(' 0')[0] for o in fig.axes}<={r'\$x\$ and \$\frac\$',r'\$'}

def test_neighbours_without_labels_or_validation():
    dls = make_dls(labels=False)
    fig = show_neighbours(Grey(), dls, n=2, k=2, pbar=False)
    assert len(fig.axes)==6 and fig.axes[0].get_title()=='' and re.fullmatch(r'0\.\d\d|1\.00', fig.axes[1].get_title())
    for dls in (make_dls(n_valid=0), DataLoaders(make_dls(n_valid=0).train), overlapping()):
        rows = np.array(show_neighbours(Grey(), dls, n=5, k=2, pbar=False).axes).reshape(5,3)
        for r in rows:
            q = shown(r[0])
            assert q not in [shown(a) for a in r[1:]] and abs(shown(r[1])-q)==1
    with pytest.raises(ValueError, match='k must be'): show_neighbours(Grey(), make_dls(), k=19, pbar=False)

def test_similarity():
    z1,z2 = tensor([[2.,0],[0,3]]),tensor([[1.,1],[0,-5]])
    ax,bar = plot_similarity(z1.requires_grad_(), z2).axes
    s = .5**.5
    assert np.allclose(ax.images[0].get_array(), [[s,0],[s,-1]]) and ax.images[0].get_clim()==(-1,1)
    assert ax.get_title()==f'same image {(s-1)/2:.2f}, others {s/2:.2f}'
    assert plot_similarity(z1).axes[0].get_title()=='same image 1.00, others 0.00'
    assert plot_similarity(z1[:1]).axes[0].get_title()=='same image 1.00'
    with pytest.raises(ValueError, match=r'\(2, 2\) and \(1, 2\)'): plot_similarity(z1, z2[:1])

class _Rec: pass
def fake_learn(names, values):
    learn = _Rec()
    learn.recorder = _Rec()
    learn.recorder.metric_names,learn.recorder.values = L(names),values
    return learn

def test_terms():
    learn = fake_learn(['epoch','train_loss','valid_loss','simclr','knn_acc','time'], [L(1.,2.,3.,float('nan')), L(.5,None,2.,.4), L(.4)])
    task,simclr,knn = plot_terms(learn).axes
    assert [l.get_label() for l in task.lines]==['train_loss','valid_loss']
    assert [a.get_title() for a in (task,simclr,knn)]==['task','simclr','knn_acc']
    nan = float('nan')
    for line,want in zip([*task.lines,*simclr.lines,*knn.lines], ([1,.5,.4],[2,nan,nan],[3,2,nan],[nan,.4,nan])):
        assert np.allclose(line.get_ydata(), want, equal_nan=True) and list(line.get_xdata())==[1,2,3]
    assert [a.get_title() for a in plot_terms(learn, 'knn_acc').axes]==['task','knn_acc']
    with pytest.raises(ValueError, match="no column 'byol'"): plot_terms(learn, 'byol')
    with pytest.raises(ValueError, match='call fit first'): plot_terms(fake_learn([], []))

def test_terms_of_a_real_fit():
    dls = make_dls()
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192,2)), CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    task,acc = plot_terms(learn).axes
    assert list(task.lines[1].get_ydata())==[v[1] for v in learn.recorder.values] and acc.get_title()=='accuracy'

def test_embedding():
    torch.manual_seed(0)
    x,y = torch.randn(30,5)*tensor([1.,9,3,1,1]),torch.arange(30)%3
    ax = plot_embedding(x, y, ['a','b','c']).axes[0]
    from sklearn.decomposition import PCA
    pca = PCA(2).fit(x.numpy())
    want = pca.transform(x.numpy())
    got = np.empty((30,2))
    for i,c in enumerate(ax.collections): got[y==i] = c.get_offsets()
    assert np.allclose(abs(got), abs(want), atol=1e-4) and abs(got).max()>5
    assert [t.get_text() for t in ax.get_legend().get_texts()]==['a','b','c']
    assert [ax.get_xlabel(),ax.get_ylabel()]==[f'component {i+1} ({r:.0%})' for i,r in enumerate(pca.explained_variance_ratio_)]
    assert len({to_rgba(c.get_facecolor()[0]) for c in ax.collections})==3
    flip = plot_embedding(x.flip(0)).axes[0]
    assert np.allclose(np.asarray(flip.collections[0].get_offsets())[::-1], got) and flip.get_legend() is None

@pytest.mark.parametrize('x,y,msg', [(torch.randn(5,1),None,r'got \(5, 1\)'), (torch.randn(1,5),None,r'got \(1, 5\)'),
    (torch.full((3,3),float('nan')),None,'nan'), (torch.randn(5,3),torch.zeros(4).long(),'5 feats but 4 labels')])
def test_bad_input_embedding(x, y, msg):
    with pytest.raises(ValueError, match=msg): plot_embedding(x, y)

def test_plot_factors():
    "Every number is in its cell, under its factor and beside its encoder; what is missing is a dash"
    fig = plot_factors({'one': {'shape':97.4, "ground's colour":-3.2}, 'other': {'shape':31}}, 'kept')
    ax, = fig.axes
    said = {(round(o.get_position()[1]),round(o.get_position()[0])):o.get_text() for o in ax.texts}
    assert said=={(0,0):'97', (0,1):'-3', (1,0):'31', (1,1):'–'}
    assert [o.get_text() for o in ax.get_yticklabels()]==['one','other']
    assert [o.get_text() for o in ax.get_xticklabels()]==['shape',"ground's\ncolour"] and ax.get_title()=='kept'
    table = pd.DataFrame({'one': {'shape':97.4}}).T
    assert plot_factors(table).axes[0].texts[0].get_text()=='97' and not plt.get_fignums()
    for bad,says in (({},'nothing to show'), ({'one':{'shape':'good'}},'numbers')):
        with pytest.raises(ValueError, match=says): plot_factors(bad)
