"""For when a model is asked to predict the next item."""


def asked_times(model, monkeypatch):
    """The times at which the model is asked for the next item of each history from now on, a list for each batch."""
    times, encode = [], model.encode

    def noting(batch, *arguments, **options):
        times.append(batch.target_times[batch.cu_seqlens[1:].long() - 1].tolist())
        return encode(batch, *arguments, **options)

    monkeypatch.setattr(model, "encode", noting)
    return times
