"A run that was broken off goes on as if nothing had happened"
import errno, os, random, shutil, signal, sys, pytest, torch
import forked
from broken_off import *
from fastai_contrastive import resumable, checkpoints, cli
from fastai_contrastive.checkpoints import Checkpoints, read_head
from fastai_contrastive.passage import Passage, random_states, load_random_states

@pytest.fixture(autouse=True)
def ctrl_c():
    "A process that was started in the background may ignore it"
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, was)

class Break(Callback):
    "Something goes wrong at batch `n`; by `how`, an exception or a function"
    order = 10**6+1
    def __init__(self, n, how=RuntimeError): self.n,self.how,self.k = n,how,0
    def after_batch(self):
        self.k += self.training
        if self.training and self.k==self.n:
            if isinstance(self.how, type): raise self.how('broken off')
            self.how()

def broken(case, folder, n=8, how=RuntimeError, **kwargs):
    "A run that saves every three batches, broken off at batch `n`"
    with pytest.raises((RuntimeError,KeyboardInterrupt)): run(case, folder, cbs=[Break(n, how)], **{'steps':3, **kwargs})

def goes_on(case, tmp_path, n=8):
    "The case without a break, and broken off and carried on"
    whole = end(run(case, tmp_path/'whole'/'run'))
    broken(case, tmp_path/'run', n)
    assert Checkpoints(tmp_path/'run').files
    assert not unequal(whole, end(run(case, tmp_path/'run', seed=5)))

some = ['simclr','task+byol','labels+swav','pirl','base inpainting','ranger','workers','bf16','chunk bf16','cache','accumulate','ids dl','two terms',
        'trackers','two fits']
assert not set(some)-set(cases())

@pytest.mark.parametrize('case', some)
def test_goes_on_bit_for_bit(case, tmp_path): goes_on(case, tmp_path)

@pytest.mark.slow
@pytest.mark.parametrize('case', [o for o in cases() if o not in some])
def test_every_other_case_goes_on_bit_for_bit(case, tmp_path): goes_on(case, tmp_path)

@pytest.mark.parametrize('n', [3,5,11])
def test_wherever_it_is_broken_off(n, tmp_path):
    "At the first state, just before and just after the end of an epoch of five batches"
    goes_on('labels+simclr', tmp_path, n)

def test_resumable_changes_nothing(tmp_path):
    "With it, or without, a run is the same"
    assert not unequal(end(run('labels+simclr', None)), end(run('labels+simclr', tmp_path/'run', steps=1)))

def test_a_second_break(tmp_path):
    whole = end(run('task+simclr', tmp_path/'whole'/'run'))
    broken('task+simclr', tmp_path/'run', 5)
    broken('task+simclr', tmp_path/'run', 4, seed=7)
    assert not unequal(whole, end(run('task+simclr', tmp_path/'run', seed=9)))

# Told to stop

def test_ctrl_c_then_fit_again(tmp_path):
    "In a notebook: the same learner, and the same call"
    whole,(learn,how) = end(run('labels+simclr', None)),(None,None)
    keep,was = Resumable(tmp_path/'run', say=noop),signal.getsignal(signal.SIGINT)
    set_seed(0)
    stop = Break(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    learn,how = learner('labels+simclr', tmp_path, keep, stop)
    set_seed(0)
    with pytest.raises(KeyboardInterrupt): fitted(learn, how)
    assert signal.getsignal(signal.SIGINT) is was and '_with_events' not in learn.__dict__
    assert read_head(keep.store.files[-1])['step']==8 # The batch after the signal was finished, and saved
    assert not unequal(whole, end(fitted(learn, how)))

def test_an_answer_of_ones_own_to_a_signal(tmp_path):
    "It is called when the state is saved, and training goes on"
    got,was = [],signal.signal(signal.SIGUSR1, lambda *a: got.append(len(Checkpoints(tmp_path/'run').files)))
    try: learn = run('labels+simclr', tmp_path/'run', cbs=[Break(7, lambda: os.kill(os.getpid(), signal.SIGUSR1))])
    finally: signal.signal(signal.SIGUSR1, was)
    assert got==[2] and len(learn.recorder.values)==epochs # The first epoch's, and the signal's

_signals = '''
import os, signal, sys
sys.path.insert(0, {tests!r})
from broken_off import *
signal.signal(signal.SIGINT, signal.default_int_handler)
class Ask(Callback):
    order = -100
    def before_batch(self):
        if self.training and self.train_iter==6: os.kill(os.getpid(), int(sys.argv[2]))
run('labels+simclr', Path(sys.argv[1])/'run', cbs=[Ask()])
'''

@pytest.mark.parametrize('name,status', [('SIGTERM',-15), ('SIGUSR1',-10), ('SIGINT',1)])
def test_the_usual_status(name, status, tmp_path):
    src = _signals.format(tests=str(Path(__file__).parent))
    p = forked.code(src, tmp_path, int(getattr(signal, name)))
    # A program that is run by `runpy` in a process of `multiprocessing` ends by 1 where a script has 130
    assert p.returncode==status, p.stderr
    assert read_head(Checkpoints(tmp_path/'run').files[-1])['step']==7
    assert not unequal(end(run('labels+simclr', None)), end(run('labels+simclr', tmp_path/'run', seed=3)))

# Killed

@pytest.fixture(scope='module')
def kills():
    "The script that kills hundreds of runs"
    sys.path.insert(0, str(Path(__file__).parents[1]/'nbs'/'results'))
    import kills
    return kills

@pytest.mark.parametrize('case,slow,n', [('labels+byol',False,4), ('dl',False,3), ('simclr',True,3)])
def test_kill_9(kills, case, slow, n):
    "Ten kills, some while a file is being written"
    row = kills.case_row(case, 1, n, slow, least=3)
    assert len(row['kills'])==n and not row['unequal'], row
    if slow: assert any(o['writing'] for o in row['kills'])
    else: assert any(o['on'] and o['on'][2] for o in row['kills']), 'none from the middle of an epoch'

# Ended by somebody else

def test_nan_is_not_the_end_of_a_run(tmp_path):
    "fastai's callback ends the fit before the recorder has seen the loss: the state before it stays, and the run is not finished"
    class Nan(Callback):
        order = -4
        def after_loss(self):
            if self.training and self.train_iter==8: self.learn.loss = self.learn.loss_grad = self.learn.loss_grad*math.nan
    learn = run('labels+simclr', tmp_path/'run', cbs=[Nan(), TerminateOnNaNCallback()], steps=3)
    head = read_head(Checkpoints(tmp_path/'run').files[-1])
    assert [head[k] for k in ('step','done')]==[8,False], head
    assert all(torch.isfinite(o).all() for o in Checkpoints(tmp_path/'run').read()[0]['model'].values())

@pytest.mark.parametrize('num', [signal.SIGINT,signal.SIGTERM])
def test_a_signal_where_a_fit_is_ended(num, tmp_path):
    "Both at once leave learner, signals and folder alone"
    class Both(Callback):
        order = 70
        def after_epoch(self):
            os.kill(os.getpid(), num)
            raise CancelFitException()
    def ends(*a): raise KeyboardInterrupt('own')
    was = signal.signal(signal.SIGTERM, ends)
    try:
        set_seed(0)
        keep = Resumable(tmp_path/'run', say=noop)
        learn,how = learner('labels+simclr', tmp_path, Both(), keep)
        with pytest.raises(KeyboardInterrupt): fitted(learn, how)
        assert not {'_with_events','all_batches'}&set(learn.__dict__) and not keep.store._lock and not keep._handlers
        assert signal.getsignal(signal.SIGTERM) is ends
    finally: signal.signal(signal.SIGTERM, was)
    assert read_head(keep.store.files[-1])['done']

def test_early_stopping_goes_on(tmp_path):
    "It has waited as long as it had; and a run that it has ended is finished"
    def stop(): return EarlyStoppingCallback('train_loss', min_delta=1e3, patience=2)
    whole = run('labels+simclr', tmp_path/'whole'/'run', cbs=[stop()])
    assert len(whole.recorder.values)==3
    with pytest.raises(RuntimeError): run('labels+simclr', tmp_path/'run', cbs=[stop(), Break(12)], steps=3)
    assert not unequal(end(whole), end(run('labels+simclr', tmp_path/'run', cbs=[stop()], seed=5)))
    said = []
    learn,how = learner('labels+simclr', tmp_path, stop(), Resumable(tmp_path/'run', say=said.append))
    fitted(learn, how)
    assert 'nothing is left to do' in said[0]

# Refused, or said

@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    "A run that was broken off"
    p = tmp_path_factory.mktemp('stopped')/'run'
    broken('labels+simclr', p)
    return p

def copy_of(folder, to):
    shutil.copytree(folder, to/'run')
    return to/'run'

def test_other_settings_are_named(stopped, tmp_path):
    p = copy_of(stopped, tmp_path)
    was = {o.name:o.read_bytes() for o in p.glob('0*')}
    def other(*cbs, lr=1e-2, case='labels+simclr', **kwargs):
        learn,_ = learner(case, tmp_path, *cbs, Resumable(p, say=noop, **kwargs))
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    for f,what in ((lambda: other(lr=1e-3), 'param_scheduler.lr'), (lambda: other(MixUp()), 'mix_up'),
                   (lambda: other(case='ranger'), 'optimizer: '), (lambda: other(case='labels+byol'), 'simclr: '),
                   (lambda: other(case='base rotation'), 'model: '), (lambda: other(settings=dict(seed=3)), 'seed: nothing then, 3 now')):
        with pytest.raises(ValueError, match=re.escape(what)) as e: f()
        assert 'restart=True' in str(e.value)
    assert was=={o.name:o.read_bytes() for o in p.glob('0*')}

def test_more_epochs_for_a_finished_run(tmp_path):
    learn = run('labels+simclr', tmp_path/'run')
    learn2,_ = learner('labels+simclr', tmp_path, Resumable(tmp_path/'run', say=noop))
    with pytest.raises(ValueError, match='a finished run with other settings .*epochs: 3 then, 5 now.*cannot be lengthened'):
        with learn2.no_bar(), learn2.no_logging(): learn2.fit_one_cycle(5, 1e-2)
    assert '_with_events' not in learn2.__dict__ and not learn2.resumable.store._lock
    said = []
    learn3,how = learner('labels+simclr', tmp_path, Resumable(tmp_path/'run', say=said.append))
    assert not unequal(end(learn), end(fitted(learn3, how))) and 'nothing is left to do' in said[0]

def test_restart(stopped, tmp_path):
    p = copy_of(stopped, tmp_path)
    set_seed(0)
    learn,_ = learner('labels+simclr', tmp_path, Resumable(p, restart=True, say=noop))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    assert len(learn.recorder.values)==1 and learn.train_iter==5

def test_other_images(stopped, tmp_path, monkeypatch):
    "One that has another size; their place does not matter"
    p = copy_of(stopped, tmp_path)
    stat = os.stat
    first = loaders().train.items[0]
    class Other:
        st_size = 1
        def __getattr__(self, k): return getattr(stat(first), k)
    monkeypatch.setattr(os, 'stat', lambda f, **kw: Other() if f==first and not kw else stat(f, **kw))
    with pytest.raises(ValueError, match='images.names, sizes and order'): run('labels+simclr', p)

def test_other_versions_are_said(stopped, tmp_path, monkeypatch):
    p,said = copy_of(stopped, tmp_path),[]
    here = resumable._here
    monkeypatch.setattr(resumable, '_here', lambda: {**here(), 'torch':'9.9'})
    learn,how = learner('labels+simclr', tmp_path, Resumable(p, say=said.append))
    fitted(learn, how)
    assert any('torch: ' in o and '9.9 now' in o and 'last bits may differ' in o for o in said)

def test_the_newest_state_is_broken(stopped, tmp_path):
    p,said = copy_of(stopped, tmp_path),[]
    fn = Checkpoints(p).files[-1].with_suffix('.safetensors')
    b = bytearray(fn.read_bytes())
    b[len(b)//2] ^= 1
    fn.write_bytes(b)
    whole = end(run('labels+simclr', None))
    set_seed(0)
    learn,how = learner('labels+simclr', tmp_path, Resumable(p, say=said.append))
    set_seed(4)
    assert not unequal(whole, end(fitted(learn, how)))
    assert fn.name in said[0] and 'the state before it is taken' in said[0] and 'goes on in epoch' in said[1]

def test_all_states_are_broken(stopped, tmp_path):
    p = copy_of(stopped, tmp_path)
    for o in p.glob('*.json'): o.write_text(o.read_text()[:-9])
    with pytest.raises(ValueError, match='no state in .* can be read'): run('labels+simclr', p)

def test_a_full_disk(tmp_path, monkeypatch):
    "Training goes on, the older state stays, and it is said at once and at the end"
    said,write = [],checkpoints.write_state
    def full(*args, **kwargs):
        if len(list((tmp_path/'run').glob('*.json')))>=1: raise OSError(errno.ENOSPC, 'No space left on device')
        return write(*args, **kwargs)
    monkeypatch.setattr(checkpoints, 'write_state', full)
    whole = end(run('labels+simclr', None))
    set_seed(0)
    learn,how = learner('labels+simclr', tmp_path, Resumable(tmp_path/'run', steps=3, say=said.append))
    set_seed(0)
    assert not unequal(whole, end(fitted(learn, how)))
    assert 'No space left' in said[0] and 'Training goes on' in said[0] and 'could not be saved' in said[-1] and 'older' in said[-1]
    assert [read_head(o)['step'] for o in Checkpoints(tmp_path/'run').files]==[3]

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError, match='choose another folder'): run('labels+simclr', tmp_path/'file'/'run')

def test_a_second_process(tmp_path):
    "Is kept out while the first trains, and not by a file that is left behind"
    got = []
    def second():
        try: run('labels+simclr', tmp_path/'run')
        except ValueError as e: got.append(str(e))
    run('labels+simclr', tmp_path/'run', cbs=[Break(3, second)])
    assert len(got)==1 and 'another process is training in' in got[0]
    run('labels+simclr', tmp_path/'run')

@pytest.mark.parametrize('kw', [dict(minutes=0), dict(minutes='5'), dict(steps=0), dict(steps=1.5)])
def test_bad_settings(kw):
    with pytest.raises(ValueError, match=next(iter(kw))): Resumable('run', **kw)

# Callbacks of others

def test_others_take_part_or_are_named(tmp_path):
    class Counts(Callback):
        "Remembers, and says what"
        def __init__(self): self.n = 0
        def after_batch(self): self.n += 1
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, s): self.n = s['n']
    class Forgets(Callback):
        n = 0
        def after_batch(self): self.n = self.n+1
    def go(said, *more):
        cb = Counts()
        set_seed(0)
        learn,how = learner('labels+simclr', tmp_path, cb, Forgets(), *more, Resumable(tmp_path/'run', steps=3, say=said.append))
        return cb,lambda: fitted(learn, how)
    said,more = [],[]
    whole,f = go([])
    f()
    shutil.rmtree(tmp_path/'run')
    _,f = go(said, Break(8))
    with pytest.raises(RuntimeError): f()
    cb,f = go(more)
    f()
    assert cb.n==whole.n
    assert len([o for o in said if o.startswith('Forgets changes')])==1 and not [o for o in said if 'Counts' in o]

def test_a_state_that_cannot_be_kept_is_refused_before_training(tmp_path):
    class Bad(Callback):
        def state_dict(self): return dict(net=[nn.ReLU()])
    with pytest.raises(TypeError, match=r'the state of bad\.net\[0\] is a ReLU'): run('labels+simclr', tmp_path/'run', cbs=[Bad()])

def test_two_callbacks_of_one_class(tmp_path):
    class Counts(Callback):
        def __init__(self, n): self.n = n
        def after_batch(self): self.n += 1
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, s): self.n = s['n']
    two = Counts(100),Counts(200)
    run('labels+simclr', tmp_path/'whole'/'run', cbs=two)
    with pytest.raises(RuntimeError): run('labels+simclr', tmp_path/'run', cbs=[Counts(100), Counts(200), Break(8)], steps=3)
    again = Counts(0),Counts(0)
    run('labels+simclr', tmp_path/'run', cbs=again, seed=5)
    assert [o.n for o in again]==[o.n for o in two]

def test_a_callback_that_holds_a_tensor_of_the_graph(tmp_path):
    "Python's copy refuses those"
    class Holds(Callback):
        def __init__(self): self.x = torch.ones(2, requires_grad=True)*2
    run('labels+simclr', tmp_path/'run', cbs=[Holds()])

def test_what_is_no_fit_is_not_kept(tmp_path):
    set_seed(0)
    learn,how = learner('labels+simclr', tmp_path, Resumable(tmp_path/'run', steps=1, say=noop))
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(show_plot=False, num_it=20)
        learn.validate()
    assert not (tmp_path/'run').exists()

def test_a_loss_that_is_not_finite_is_not_kept(tmp_path):
    class Nan(Callback):
        order = 0
        def after_loss(self):
            if self.training and self.train_iter>=7: self.learn.loss_grad = self.learn.loss_grad*math.nan; self.learn.loss = self.learn.loss*math.nan
    said = []
    set_seed(0)
    learn,how = learner('labels+simclr', tmp_path, Nan(), Resumable(tmp_path/'run', steps=1, say=said.append))
    fitted(learn, how)
    assert max(read_head(o)['step'] for o in Checkpoints(tmp_path/'run').files)==7 and 'not finite' in said[-1]

# The commands

def pretrain(tmp_path, **kwargs):
    return cli.pretrain(**{**dict(data=str(fastai_path('data')/'broken-images'), size=32, arch='xresnet_narrow', arch_args=dict(nf=16, blocks=1),
        task='rotation', objective='simclr', epochs=2, bs=8, num_workers=0, out=str(tmp_path/'a')), **kwargs})

def test_the_command_goes_on(tmp_path, capsys, monkeypatch):
    loaders()
    whole = pretrain(tmp_path, out=str(tmp_path/'whole'))
    after = cli.Lines.after_batch
    def stop(self):
        if self.training and self.train_iter==8: os.kill(os.getpid(), signal.SIGINT)
        after(self)
    monkeypatch.setattr(cli.Lines, 'after_batch', stop)
    with pytest.raises(KeyboardInterrupt, match=r'a\.run holds the run up to step \d+, and the same again goes on'): pretrain(tmp_path)
    monkeypatch.setattr(cli.Lines, 'after_batch', after)
    assert (tmp_path/'a.run').is_dir()
    capsys.readouterr()
    row = pretrain(tmp_path)
    assert 'goes on in epoch' in capsys.readouterr().out and not (tmp_path/'a.run').exists()
    assert {k:v for k,v in row.items() if k!='seconds'}=={k:v for k,v in whole.items() if k!='seconds'}
    a,b = (load_encoder(tmp_path/f'{o}.safetensors').state_dict() for o in ('a','whole'))
    assert all(torch.equal(a[k], b[k]) for k in b)
    was = (tmp_path/'a.safetensors').stat().st_mtime_ns
    assert pretrain(tmp_path)['values']==row['values'] and 'nothing is left to do' in capsys.readouterr().out
    with pytest.raises(ValueError, match='epochs: 2 then, 3 now'): pretrain(tmp_path, epochs=3)
    assert (tmp_path/'a.safetensors').stat().st_mtime_ns==was
    assert len(pretrain(tmp_path, epochs=1, restart=True)['values'])==1
    row = cli.finetune(str(tmp_path/'a'), row['data'], 32, epochs=1, bs=8, num_workers=0)
    assert row['finished'] and cli.finetune(str(tmp_path/'a'), row['data'], 32, epochs=1, bs=8, num_workers=0)==row
    with pytest.raises(ValueError, match='lr: 0.004 then, 0.1 now'): cli.finetune(str(tmp_path/'a'), row['data'], 32, lr=.1, epochs=1, bs=8, num_workers=0)

def test_a_restart_that_was_broken_off_goes_on(tmp_path, monkeypatch, capsys):
    "Though the row of the run before lies there, and whatever its settings were; and a row of another kind is not written over"
    loaders()
    old = pretrain(tmp_path)
    tune = partial(cli.finetune, str(tmp_path/'a'), old['data'], 32, epochs=2, bs=8, num_workers=0)
    tune(out=str(tmp_path/'f'))
    after = cli.Lines.after_batch
    def stop(self):
        if self.training and self.train_iter==2: os.kill(os.getpid(), signal.SIGINT)
        after(self)
    with monkeypatch.context() as m:
        m.setattr(cli.Lines, 'after_batch', stop)
        with pytest.raises(KeyboardInterrupt): pretrain(tmp_path, epochs=3, restart=True)
        with pytest.raises(KeyboardInterrupt): tune(out=str(tmp_path/'f'), restart=True)
    capsys.readouterr()
    assert tune(out=str(tmp_path/'f'))['finished'] and 'goes on in epoch' in capsys.readouterr().out
    assert len(pretrain(tmp_path, epochs=3)['values'])==3 and 'goes on in epoch' in capsys.readouterr().out
    a = json.loads((tmp_path/'a.json').read_text())
    with pytest.raises(ValueError, match=r'row of another kind of run \(pretrain\), which finetune would write over'): tune(out=str(tmp_path/'a'))
    assert json.loads((tmp_path/'a.json').read_text())==a

def test_the_command_goes_on_where_the_images_were_moved(tmp_path, monkeypatch, capsys):
    loaders()
    after = cli.Lines.after_batch
    def stop(self):
        if self.training and self.train_iter==4: os.kill(os.getpid(), signal.SIGINT)
        after(self)
    with monkeypatch.context() as m:
        m.setattr(cli.Lines, 'after_batch', stop)
        with pytest.raises(KeyboardInterrupt): pretrain(tmp_path)
    shutil.copytree(fastai_path('data')/'broken-images', tmp_path/'moved')
    with monkeypatch.context() as m: # Stopped before it has saved anything itself, it knows what there is
        m.setattr(cli.Lines, 'before_train', lambda self: (_ for _ in ()).throw(KeyboardInterrupt), raising=False)
        with pytest.raises(KeyboardInterrupt, match=r'a\.run holds the run up to step 4'): pretrain(tmp_path, data=str(tmp_path/'moved'))
    capsys.readouterr()
    assert pretrain(tmp_path, data=str(tmp_path/'moved'))['finished'] and 'goes on in epoch' in capsys.readouterr().out

def test_the_command_stops_where_it_diverges(tmp_path, monkeypatch):
    "Which loss, at which step; the weights are those of the step before"
    loaders()
    loss,n = SimCLR.loss,[0]
    def odd(self, *args):
        n[0] += self.training
        return loss(self, *args)*(math.inf if n[0]>8 else 1)
    monkeypatch.setattr(SimCLR, 'loss', odd)
    with pytest.raises(ValueError, match=r'has diverged at step 8 \(epoch 1\): the loss of simclr is inf\. .*What to try: .*a\.safetensors holds '
                       'the encoder as it was before that step'): pretrain(tmp_path)
    enc = load_encoder(tmp_path/'a.safetensors')
    assert all(torch.isfinite(o).all() for o in enc.state_dict().values())
    assert [enc.recipe[k] for k in ('epoch','finished','diverged_at')]==[0,False,8]
    assert json.loads((tmp_path/'a.json').read_text())['finished'] is False

# Several processes

def _shared(n, path, case, folder, at):
    "One of two processes: a whole run, one broken off and carried on; or carried on from where another number was"
    os.environ.update(RANK=str(n), LOCAL_RANK=str(n), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2')
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{path}/store', rank=n, world_size=2)
    from fastai_contrastive.processes import many_processes
    def go(folder, seed, *cbs):
        set_seed(0)
        said = []
        learn,how = learner(case, Path(path), *cbs, Resumable(folder, steps=1, say=said.append))
        set_seed(seed)
        with many_processes(learn): fitted(learn, how)
        return end(learn),said
    res = {}
    if at:
        res['whole'],_ = go(f'{path}/whole/run', 0)
        try: go(folder, 0, Break(at))
        except RuntimeError: pass
    res['end'],res['said'] = go(folder, 5)
    checkpoints.write_state(res, f'{path}/{n}')
    torch.distributed.destroy_process_group()

def test_two_processes_go_on(tmp_path):
    "The same on both; and from there on one process, which says what is not exact then"
    run_ = tmp_path/'run'
    forked.spawn(_shared, (str(tmp_path), 'dl', str(run_), 3), 2)
    both = [checkpoints.read_state(tmp_path/str(i))[0] for i in range(2)]
    for o in both: assert not unequal(o['whole'], o['end'])
    assert not unequal(both[0]['end']['model'], both[1]['end']['model'])
    assert 'goes on in epoch 2 of 3, batch 2 of 2' in both[0]['said'][0] and not both[1]['said']

def test_more_processes_early_in_an_epoch(tmp_path):
    "One batch of one process is half a batch of two: nothing to leave out, and still everything to put back"
    k = next(k for k in range(5, 20) if (shutil.rmtree(tmp_path/'run', ignore_errors=True), broken('dl', tmp_path/'run', k, steps=1),
        read_head(Checkpoints(tmp_path/'run').files[-1]))[-1]['n']==1)
    forked.spawn(_shared, (str(tmp_path), 'dl', str(tmp_path/'run'), 0), 2)
    a = checkpoints.read_state(tmp_path/'0')[0]
    assert any('goes on in epoch 2' in o for o in a['said']) and len(a['end']['losses'])>k-1
    assert len(a['end']['values'])==3

def test_what_it_has_not_written_stays(tmp_path):
    "Whatever somebody has in the folder: after a run that saved nothing, a restart, and a run that is finished"
    mine = {'2024-results.csv':'a','1.jpg':'b','2024.json':'{}','007_notes.txt':'c','.1.x':'d'}
    (tmp_path/'run').mkdir()
    for k,v in mine.items(): (tmp_path/'run'/k).write_text(v)
    there = lambda: {k:(tmp_path/'run'/k).read_text() for k in mine}
    broken('dl', tmp_path/'run', 1)
    assert there()==mine
    broken('dl', tmp_path/'run', 4)
    run('dl', tmp_path/'run', restart=True)
    assert there()==mine
    Resumable(tmp_path/'run').finish()
    assert there()==mine and sorted(o.name for o in (tmp_path/'run').iterdir())==sorted(mine)

def test_finish_leaves_a_running_process_alone(tmp_path):
    "The folder of a process that is at it is its own"
    broken('dl', tmp_path/'run', 4)
    other = Checkpoints(tmp_path/'run')
    other.lock()
    Resumable(tmp_path/'run').finish()
    assert other.files
    other.unlock()
    Resumable(tmp_path/'run').finish()
    assert not (tmp_path/'run').exists()

def test_another_number_of_processes(tmp_path):
    broken('dl', tmp_path/'run', 7)
    forked.spawn(_shared, (str(tmp_path), 'dl', str(tmp_path/'run'), 0), 2)
    a,b = (checkpoints.read_state(tmp_path/str(i))[0] for i in range(2))
    assert any('2 processes go on for 1' in o and 'not as it would have been' in o for o in a['said']), a['said']
    assert not unequal(a['end']['model'], b['end']['model']) and np.isfinite(a['end']['losses']).all()
