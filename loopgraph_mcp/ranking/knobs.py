"""The knobs of a nanochat-style training file: how people write them, and which family of methods they belong to."""

from collections.abc import Mapping

# Families, knobs, and patterns of how a knob is written; underscores are spaces here and letters are small. The more
# telling names come first: a "value embedding LR" is no "embedding LR".
_TABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("unembed_lr", "learning-rate", (
        r"(?:unembed(?:ding)?|lm ?head|output|head)[ -]?(?:lr|learning rate)s?", r"unembed(?=[ =]*[\d.])",
    )),
    ("value_embed", "embedding", (
        r"(?:value|v)[ -]?(?:embed(?:ding)?s?|residuals?)(?: lrs?| gate(?: channels)?| wd| init)?",
        r"\bve\b(?: gate(?: channels)?| lr| wd| init)?", r"\bves\b", r"resformer",
    )),
    ("group_betas", "optimizer", (
        r"(?:embed(?:ding)?s?|wte|(?:lm ?)?head|unembed(?:ding)?|scalars?|(?:x0|resid(?:ual)?)(?: lambdas?)?)"
        r"(?:'s)?(?: adamw?)? (?:betas?(?: ?[12]\b)?|(?:first|second)[ -]moment)",
    )),
    ("wd_schedule", "schedule", (
        r"(?:muon |cautious )?(?:weight[ -]?decay|\bwd)(?: (?:linear|cosine|constant|lr))? "
        r"(?:schedul\w*|warm[ -]?(?:up|down)|cool[ -]?down|anneal\w*|ramp\w*|decay(?:s|ed|ing)?\b)",
        r"(?:constant|fixed|flat|linear(?:ly)?|cosine|anneal\w*|decay(?:ed|ing)|schedul\w*|ramp\w*)"
        r"(?: the)?(?: muon| cautious)? (?:weight[ -]?decay|wd\b)",
    )),
    ("momentum_schedule", "schedule", (
        r"(?:muon )?(?:momentum|beta ?1) (?:schedul\w*|warm[ -]?(?:up|down)|cool[ -]?down|anneal\w*|ramp\w*|decay\w*)"
        r"(?: (?:steps|length|ratio))?",
    )),
    ("seq_curriculum", "schedule", (
        r"(?:seq(?:uence)?(?:[ -]?len(?:gth)?)?|context(?:[ -]length)?|length) "
        r"(?:curricul\w+|warm[ -]?up|schedul\w*|ramp\w*|growth)",
        r"(?:progressive(?:ly)?|growing|increasing|short-to-long|variable) (?:longer )?"
        r"(?:seq\w*|context)(?:[ -]len\w*)?",
        r"curriculum",
    )),
    ("norm_place", "normalization", (
        r"(?:post|pre|sandwich|peri|sub)[ -]?(?:layer|rms|ln)?[ -]?norm\w*",
        r"(?:extra |another |additional )?(?:rms|layer)?[ -]?norm(?:ali[sz]ation|ali[sz]e)?s? (?:after|before|on|of)"
        r"(?: the| each| every)? (?:attn|attention|mlp|ffn|embed\w*|resid\w*|block\w*|outputs?|values?|v\b"
        r"|(?:lm )?head)",
    )),
    ("branch_scale", "architecture", (
        r"(?:mlp|ffn|attn|attention|block|branch)(?: block| branch)? (?:out(?:put)?s?|branch|projection)[ -]"
        r"(?:scal\w+|multiplier|gain|gate)",
        r"scal(?:e|ed|ing) (?:of )?(?:the )?(?:mlp|ffn|attn|attention)(?: branch)? (?:out(?:put)?s?|branch)",
    )),
    ("router", "architecture", (
        r"(?:top[ -]?\d+ )?rout(?:er|ing)(?: (?:z[ -]?loss|aux\w* loss|bias|noise|temperature))?",
        r"load[ -]balanc\w+(?: loss)?",
    )),
    ("experts", "architecture", (
        r"mixture[ -]of[ -]experts", r"\bmoe\b", r"(?:n |num |number of |routed |shared )?experts?",
    )),
    ("embed_wd", "regularization", (
        r"(?:embed(?:ding)?s?|wte) (?:wd|weight decay)",
        r"(?:wd|weight decay) (?:on|for|to) (?:the )?(?:embed\w*|wte)",
    )),
    ("head_wd", "regularization", (
        r"(?:lm ?head|unembed(?:ding)?) (?:wd|weight decay)",
    )),
    ("embed_lr", "learning-rate", (
        r"(?:token )?(?:embed(?:ding)?s?|wte|emb)[ -]?(?:lr|learning rate)s?", r"embed(?=[ =]*[\d.])",
    )),
    ("scalar_lr", "learning-rate", (
        r"scalars?[ -]?(?:lr|learning rate)s?", r"lambda lr",
    )),
    ("matrix_lr", "learning-rate", (
        r"(?:matrix|muon|mlr)[ -]?(?:lr|learning rate)s?", r"\bmlr ?(?=[\d.=])", r"matrix(?=[ =]*[\d.])",
    )),
    ("warmdown", "schedule", (
        r"(?:lr )?(?:warm|cool)[ -]?downs?(?: (?:ratio|frac(?:tion)?|length|phase|schedule))?",
    )),
    ("warmup", "schedule", (
        r"(?:lr |learning rate |linear )?warm[ -]?up(?: (?:ratio|frac(?:tion)?|steps))?",
    )),
    ("final_lr", "schedule", (
        r"(?:final|min(?:imum)?|end|floor)[ -]?(?:lr|learning rate)(?: frac(?:tion)?| floor| ratio)?", r"lr floor",
        r"lr decays? to",
    )),
    ("lr_schedule", "schedule", (
        r"(?:cosine|linear|sqrt|exponential|polynomial|1-sqrt|quadratic)(?: lr)?(?: annealing)? "
        r"(?:decay|schedule|warmdown|anneal\w*)",
        r"cosine", r"wsd\b", r"one ?cycle", r"(?:lr|learning rate) schedule",
    )),
    ("muon_momentum", "optimizer", (
        r"muon (?:\w+ )?(?:momentum|beta(?: ?[12]\b)?)", r"momentum", r"nesterov",
    )),
    ("muon_ns", "optimizer", (
        r"(?:muon )?ns[ -]?steps", r"newton[ -]schul[tz]+(?: (?:steps|iterations))?", r"polar express(?: steps)?",
    )),
    ("adam_beta2", "optimizer", (
        r"(?:adamw? )?(?:betas? )?(?:beta ?2|second[ -]moment)",
    )),
    ("adam_beta1", "optimizer", (
        r"(?:adamw? )?(?:betas? )?(?:beta ?1|first[ -]moment)",
    )),
    ("adam_betas", "optimizer", (
        r"adamw? betas?",
    )),
    ("adam_eps", "optimizer", (
        r"adamw? eps(?:ilon)?", r"\beps(?:ilon)?\b",
    )),
    ("grad_clip", "optimizer", (
        r"(?:grad(?:ient)?[ -]?)(?:norm )?clip(?:ping)?", r"clip[ -]?grad\w*", r"max[ -]norm",
    )),
    ("weight_decay", "regularization", (
        r"weight[ -]?decay", r"(?:muon |cautious )?\bwd\b",
    )),
    ("dropout", "regularization", (
        r"(?:residual |attn |attention |mlp |embedding )?drop ?out", r"stochastic depth", r"drop ?path",
        r"layer ?drop",
    )),
    ("label_smoothing", "objective", (
        r"label[ -]smoothing",
    )),
    ("z_loss", "objective", (
        r"z[ -]?loss",
    )),
    ("device_batch", "batch-size", (
        r"(?:device|micro|per[ -]device)[ -]?batch(?:[ -]size)?", r"\bdbs\b", r"gradient accumulation",
        r"grad[ -]accum\w*",
    )),
    ("batch_size", "batch-size", (
        r"(?:total |global |train |token )?batch(?:[ -]?size)?", r"\btbs\b", r"\bbs\b",
    )),
    ("seq_len", "batch-size", (
        r"(?:max )?seq(?:uence)?[ -]?len(?:gth)?", r"context length",
    )),
    ("softcap", "output", (
        r"(?:logit[ -]?)?soft[ -]?cap(?:ping)?", r"logit[ -]?cap",
    )),
    ("tying", "embedding", (
        r"(?:weight[ -])?tying", r"tied? (?:weights|embeddings?)", r"tie (?:wte|weights|embed\w*|lm\w*)\S*",
        r"shared? (?:wte|embed)\S*",
    )),
    ("mtp", "objective", (
        r"multi[ -]token prediction", r"\bmtp\b", r"auxiliary loss", r"aux loss",
    )),
    ("window_size", "attention", (
        r"(?:short|sliding|local|long)[ -]windows?(?: size)?(?=[^,;]*(?:\d"
        r"|\b(?:half|third|quarter|eighth|sixteenth)\b))",
        r"(?:half|third|quarter|eighth|sixteenth)[ -](?:context|length|seq\w*)(?:[ -]length)?[ -]windows?",
        r"window size",
        r"windows? (?:=|of|to|at) (?:a |an )?(?:half|third|quarter|eighth|sixteenth)\b"
        r"(?: (?:of )?(?:the )?(?:context|seq\w*))?",
    )),
    ("window", "attention", (
        r"window(?:[ -]?pattern)?s?", r"sliding window", r"full[ -](?:context |global )?attention",
        r"all[ -](?:short|long|full|local|global)(?:[ -]window)?", r"global attention", r"swa\b",
        r"(?<![\w])[sl]{2,9}(?![\w])", r"(?<!\w)\d{1,3} ?s ?\+ ?\d{1,3} ?l\b",
    )),
    ("mqa", "attention", (
        r"\bmqa\b", r"multi[ -]query",
    )),
    ("gqa", "attention", (
        r"\bgqa\b", r"grouped[ -]query", r"(?:n )?kv[ -]?heads?",
    )),
    ("qk_norm", "attention", (
        r"q ?k?[ /-]?k?[ -]norm(?:ali[sz]ation)?", r"qk (?:scal\w+|gain)", r"attention (?:scale|temperature)",
        r"attn (?:scale|temperature)",
    )),
    ("attn_variant", "attention", (
        r"diff(?:erential)? (?:attention|attn)", r"(?:attention|attn) (?:output )?gat\w+", r"gated attention", r"xsa",
        r"parallel (?:attention|attn|block|residual)\w*", r"flash\w*", r"talking heads", r"attention sinks?",
        r"token shift", r"smear\w*", r"(?:depthwise )?conv\w*", r"alibi",
    )),
    ("rope", "position", (
        r"rope(?: (?:base|theta|frequency))?", r"rotary(?: (?:base|theta|frequency))?",
        r"(?:learned )?position(?:al)? embed\w*", r"partial rope",
    )),
    ("head_dim", "architecture", (
        r"head[ -]?dim(?:ension)?s?", r"(?<!with )\bhd\b(?= ?[=\d])",
        r"(?:n|more|fewer|number of)[ -](?:attention )?heads?", r"\bheads\b",
    )),
    ("mlp_ratio", "architecture", (
        r"mlp(?: (?:expansion|ratio|multiplier|mult|hidden(?: dim)?|width|dim))+",
        r"(?:ffn?|feed[ -]?forward|swiglu)(?: (?:expansion|ratio|hidden|dim|width|mult))+", r"mlp(?= ?\d)",
        r"(?<=x )mlp", r"(?:mlp|expansion)(?= (?:from )?\d)", r"hidden (?:dim|size)",
        r"(?:ffn|mlp) (?:wider|narrower)", r"(?:wider|narrower) mlp",
    )),
    ("depth", "architecture", (
        r"depth", r"n[ -]?layers?", r"(?<=\d )layers?\b", r"(?<=\d-)layers?\b", r"\blayers\b", r"deeper",
        r"shallower", r"more layers",
    )),
    ("width", "architecture", (
        r"aspect[ -]?ratio", r"\bar\b(?= ?[=\d])", r"(?:model )?width", r"model[ -]dim", r"n[ -]embd?", r"d[ -]model",
        r"\bdim\b", r"wider", r"narrower", r"thinner", r"embedding dim(?:ension)?",
    )),
    ("activation", "activation", (
        r"(?:leaky )?re?lu ?(?:\^ ?2|squared|2|sq)?", r"squared[ -]?relu", r"relu", r"gelu", r"silu", r"swish",
        r"swiglu", r"geglu", r"reglu", r"mish", r"(?:xi|p|c|s)?elu\b", r"(?:gated|glu)(?: mlp| linear units?)?",
        r"squareplus",
        r"activation(?! checkp)(?: function)?", r"tanh mlp",
    )),
    ("norm", "normalization", (
        r"(?:rms|layer|batch|dyt|learnable)[ -]?norm\w*", r"dynamic tanh",
        r"norm(?:ali[sz]ation)? (?:layer|scal\w+)", r"normali[sz]ation", r"ln scaling",
    )),
    ("resid_lambda", "architecture", (
        r"(?:x0|resid(?:ual)?)[ -]?(?:lambda|lambdas|scal\w+|gate|weight|init)s?", r"x0", r"lambdas?",
        r"skip connections?", r"u-?net", r"hyper[ -]?connections?", r"re ?zero", r"layer ?scale",
    )),
    ("init_scale", "initialization", (
        r"(?:zero|small|random|orthogonal|xavier|kaiming|uniform|normal|mu-?p|scaled)[ -]?(?:random )?init\w*",
        r"init(?:iali[sz]ation|iali[sz]e|ial)?[ -]?(?:scale|std|gain|scheme)?\b", r"std",
    )),
    ("lr_general", "learning-rate", (
        r"(?:all |base |peak |max |overall |global )?(?:\blrs?\b|learning rates?)(?: (?:scale|multiplier))?",
    )),
    ("optimizer", "optimizer", (
        r"adamw", r"lion", r"sophia", r"shampoo", r"soap", r"adafactor", r"sgd", r"ademamix", r"schedule[ -]free",
        r"\bema\b", r"lawa", r"swa averaging", r"weight averaging", r"lookahead", r"muon", r"adam", r"normuon",
    )),
    ("systems", "systems", (
        r"compile(?: mode)?", r"torch\.?compile", r"bf16", r"fp16", r"float16", r"fp32", r"fp8", r"autocast",
        r"mixed precision", r"(?:activation |gradient )?checkpointing", r"cuda graphs?", r"prefetch\w*",
        r"data ?loader", r"tf32", r"mx\.compile", r"\bgc\b",
    )),
)  # fmt: skip
FAMILIES: Mapping[str, str] = {knob: family for knob, family, _ in _TABLE} | {
    "group_beta1": "optimizer",
    "group_beta2": "optimizer",
    "other": "other",
}


def _at_word_start(pattern: str) -> bool:
    """Whether a pattern stands at the beginning of a word: it begins with a letter."""
    return pattern[0].isalpha() or pattern.startswith("(?:")


PATTERNS: Mapping[str, str] = {
    knob: "|".join(f"(?<![a-z]){each}" if _at_word_start(each) else each for each in written)
    for knob, _, written in _TABLE
}
_ALL = [each for _, _, written in _TABLE for each in written]
# Whether any knob is named: the beginning of a word is looked for once and not for each pattern, ten times as fast.
ANY = "|".join(
    [
        "(?<![a-z])(?:" + "|".join(filter(_at_word_start, _ALL)) + ")",
        *(each for each in _ALL if not _at_word_start(each)),
    ]
)
