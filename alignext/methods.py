# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: a table with a row per method.
"""The table of methods: one row for each, and the only place that says what there is.

Commands, their help, the demo's order, the `_paper` of classes, and the tables of README and documentation are made
from these rows, or `tests/test_methods.py` holds them against the rows. A new method begins with its row here.
"""

from typing import NamedTuple


class Method(NamedTuple):
    """
    A row of the table.

    Args:
        name (`str`): As people say it.
        title (`str`): Of its paper.
        arxiv (`str`): Id of the paper.
        citation (`str`): The paper in BibTeX.
        task (`str`): What it is for, in a few words that follow the name.
        classes (`tuple[str, ...]`): Its public classes, names of `alignext`.
        parents (`tuple[str, ...]`): The stock class of each, or one for all.
        needs (`str`): Data, and whether it trains.
        commands (`tuple[str, ...]`): Of `alignext`, the one that uses it first.
        demo (`str` or `None`): Name of its part of `alignext demo`; `None` where another part shows it.
        page (`str`): Of the documentation, without its ending.
    """

    name: str
    title: str
    arxiv: str
    citation: str
    task: str
    classes: tuple[str, ...]
    parents: tuple[str, ...]
    needs: str
    commands: tuple[str, ...]
    demo: str | None
    page: str

    @property
    def paper(self) -> dict[str, str]:
        """What pipelines and trainers carry as `_paper`, which the cards of models cite."""
        return {"title": self.title, "id": self.arxiv, "citation": self.citation.strip()}


METHODS = (
    Method(
        name="RIVAL",
        title="Real-World Image Variation by Aligning Diffusion Inversion Chain",
        arxiv="2305.18729",
        citation=r"""
@inproceedings{zhang2023rival,
    title     = {{Real-World Image Variation by Aligning Diffusion Inversion Chain}},
    author    = {Zhang, Yuechen and Xing, Jinbo and Lo, Eric and Jia, Jiaya},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2023},
}
""",
        task="variations of a real picture, or new pictures in its style",
        classes=("RIVALPipeline", "RIVALXLPipeline", "RIVALControlNetPipeline", "RIVALXLControlNetPipeline"),
        parents=(
            "diffusers.StableDiffusionPipeline",
            "diffusers.StableDiffusionXLPipeline",
            "diffusers.StableDiffusionControlNetPipeline",
            "diffusers.StableDiffusionXLControlNetPipeline",
        ),
        needs="one picture; no training",
        commands=("rival",),
        demo="rival",
        page="rival",
    ),
    Method(
        name="AlignedGen",
        title="AlignedGen: Aligning Style Across Generated Images",
        arxiv="2509.17088",
        citation=r"""
@inproceedings{zhang2025alignedgen,
    title     = {{AlignedGen: Aligning Style Across Generated Images}},
    author    = {Zhang, Jiexuan and Du, Yiheng and Wang, Qian and Gu, Yu and Li, Weiqi and Zhang, Jian},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2025},
}
""",
        task="a set of pictures in one consistent style",
        classes=(
            "AlignedGenPipeline",
            "AlignedGenKontextPipeline",
            "AlignedGenFlux2Pipeline",
            "AlignedGenFlux2KleinPipeline",
            "AlignedGenQwenImagePipeline",
        ),
        parents=(
            "diffusers.FluxPipeline",
            "diffusers.FluxKontextPipeline",
            "diffusers.Flux2Pipeline",
            "diffusers.Flux2KleinPipeline",
            "diffusers.QwenImagePipeline",
        ),
        needs="prompts, or one style picture; no training",
        commands=("alignedgen",),
        demo="alignedgen",
        page="alignedgen",
    ),
    Method(
        name="Latent search",
        title="Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search",
        arxiv="2501.19252",
        citation=r"""
@inproceedings{oshima2025inference,
    title     = {{Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search}},
    author    = {Oshima, Yuta and others},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2025},
}
""",
        task="the best picture or video a reward can find, at inference time",
        classes=("LatentSearch",),
        parents=("any diffusers pipeline",),
        needs="a reward; no training",
        commands=("search",),
        demo="search",
        page="latent_search",
    ),
    Method(
        name="Diffusion-DPO",
        title="Diffusion Model Alignment Using Direct Preference Optimization",
        arxiv="2311.12908",
        citation=r"""
@inproceedings{wallace2024diffusion,
    title     = {{Diffusion Model Alignment Using Direct Preference Optimization}},
    author    = {Wallace, Bram and others},
    booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
    year      = {2024},
}
""",
        task="train a text-to-image model on preferred pictures",
        classes=("DiffusionDPOTrainer",),
        parents=("transformers.Trainer",),
        needs="pairs of pictures with a preference",
        commands=("diffusion-dpo",),
        demo="diffusion-dpo",
        page="diffusion_preference",
    ),
    Method(
        name="Diffusion-KTO",
        title="Aligning Diffusion Models by Optimizing Human Utility",
        arxiv="2404.04465",
        citation=r"""
@inproceedings{li2024aligning,
    title     = {{Aligning Diffusion Models by Optimizing Human Utility}},
    author    = {Li, Shufan and Kallidromitis, Konstantinos and Gokul, Akash and Kato, Yusuke and Kozuka, Kazuki},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2024},
}
""",
        task="train a text-to-image model on thumbs up and thumbs down",
        classes=("DiffusionKTOTrainer",),
        parents=("transformers.Trainer",),
        needs="single pictures with a label",
        commands=("diffusion-kto",),
        demo=None,
        page="diffusion_preference",
    ),
    Method(
        name="Inversion-DPO",
        title="Inversion-DPO: Precise and Efficient Post-Training for Diffusion Models",
        arxiv="2507.11554",
        citation=r"""
@inproceedings{li2025inversion,
    title     = {{Inversion-DPO: Precise and Efficient Post-Training for Diffusion Models}},
    author    = {Li, Zejian and others},
    booktitle = {Proceedings of the 33rd ACM International Conference on Multimedia},
    year      = {2025},
    note      = {arXiv:2507.11554},
}
""",
        task="train a text-to-image model on preferred pictures, with the noise of each from its inversion",
        classes=("InversionDPOTrainer",),
        parents=("transformers.Trainer",),
        needs="pairs of pictures with a preference",
        commands=("inversion-dpo",),
        demo=None,
        page="diffusion_preference",
    ),
    Method(
        name="SmPO",
        title="Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with Varied Human "
        "Preferences",
        arxiv="2506.02698",
        citation=r"""
@inproceedings{lu2025smoothed,
    title     = {{Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with Varied
                 Human Preferences}},
    author    = {Lu, Yunhong and others},
    booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
    year      = {2025},
}
""",
        task="train a text-to-image model on pairs of pictures with soft labels; InPO as a setting",
        classes=("SmPOTrainer",),
        parents=("transformers.Trainer",),
        needs="pairs of pictures with scores",
        commands=("smpo",),
        demo=None,
        page="diffusion_preference",
    ),
    Method(
        name="AlignProp",
        title="Aligning Text-to-Image Diffusion Models with Reward Backpropagation",
        arxiv="2310.03739",
        citation=r"""
@article{prabhudesai2023aligning,
    title   = {{Aligning Text-to-Image Diffusion Models with Reward Backpropagation}},
    author  = {Prabhudesai, Mihir and Goyal, Anirudh and Pathak, Deepak and Fragkiadaki, Katerina},
    journal = {arXiv preprint arXiv:2310.03739},
    year    = {2023},
}
""",
        task="train a text-to-image model on a reward that has a gradient",
        classes=("AlignPropTrainer",),
        parents=("transformers.Trainer",),
        needs="prompts and a differentiable reward",
        commands=("alignprop",),
        demo="alignprop",
        page="alignprop",
    ),
    Method(
        name="DDPO",
        title="Training Diffusion Models with Reinforcement Learning",
        arxiv="2305.13301",
        citation=r"""
@inproceedings{black2024training,
    title     = {{Training Diffusion Models with Reinforcement Learning}},
    author    = {Black, Kevin and Janner, Michael and Du, Yilun and Kostrikov, Ilya and Levine, Sergey},
    booktitle = {The Twelfth International Conference on Learning Representations},
    year      = {2024},
}
""",
        task="train a text-to-image model on any reward, by policy gradient",
        classes=("DDPOTrainer",),
        parents=("transformers.Trainer",),
        needs="prompts and any reward",
        commands=("ddpo",),
        demo=None,
        page="ddpo",
    ),
    Method(
        name="BCO",
        title="Binary Classifier Optimization for Large Language Model Alignment",
        arxiv="2404.04656",
        citation=r"""
@inproceedings{jung2025binary,
    title     = {{Binary Classifier Optimization for Large Language Model Alignment}},
    author    = {Jung, Seungjae and Han, Gunsoo and Nam, Daniel Wontae and On, Kyoung-Woon},
    booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics},
    year      = {2025},
}
""",
        task="train a language model on thumbs up and thumbs down",
        classes=("BCOTrainer",),
        parents=("trl.KTOTrainer",),
        needs="single completions with a label",
        commands=("bco",),
        demo="bco",
        page="bco",
    ),
    Method(
        name="f-DPG",
        title="Aligning Language Models with Preferences through f-divergence Minimization",
        arxiv="2302.08215",
        citation=r"""
@inproceedings{go2023aligning,
    title     = {{Aligning Language Models with Preferences through f-divergence Minimization}},
    author    = {Go, Dongyoung and Korbak, Tomasz and Kruszewski, Germ{\'a}n and Rozen, Jos and Ryu, Nahyeon and
                 Dymetman, Marc},
    booktitle = {Proceedings of the 40th International Conference on Machine Learning},
    year      = {2023},
}
""",
        task="move a language model towards a target distribution",
        classes=("FDPGTrainer",),
        parents=("trl.RLOOTrainer",),
        needs="prompts and a reward or constraint",
        commands=("f-dpg",),
        demo="f-dpg",
        page="f_dpg",
    ),
    Method(
        name="MAH-DPO",
        title="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
        arxiv="2510.01167",
        citation=r"""
@article{simultaneous2025alignment,
    title   = {{Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards}},
    journal = {arXiv preprint arXiv:2510.01167},
    year    = {2025},
}
""",
        task="train a language model for several objectives at once",
        classes=("MAHDPOTrainer",),
        parents=("trl.DPOTrainer",),
        needs="preference pairs, each with its objective",
        commands=("mah-dpo", "generate"),
        demo="mah-dpo",
        page="mah_dpo",
    ),
    Method(
        name="Process rewards",
        title="Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
        arxiv="2510.01167",
        citation=r"""
@article{simultaneous2025alignment,
    title   = {{Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards}},
    journal = {arXiv preprint arXiv:2510.01167},
    year    = {2025},
}
""",
        task="score a text step by step, and decode guided by it",
        classes=("ProcessRewardTrainer",),
        parents=("trl.RewardTrainer",),
        needs="texts in steps, each with a label",
        commands=("process-reward", "generate"),
        demo="process-reward",
        page="process_reward",
    ),
    Method(
        name="Concept DAS",
        title="Faithful Bi-Directional Model Steering via Distribution Matching and Distributed Interchange "
        "Interventions",
        arxiv="2602.05234",
        citation=r"""
@inproceedings{bao2026faithful,
    title     = {{Faithful Bi-Directional Model Steering via Distribution Matching and Distributed Interchange
                 Interventions}},
    author    = {Bao and others},
    booktitle = {International Conference on Learning Representations},
    year      = {2026},
}
""",
        task="learn a direction that switches a concept on and off in a frozen language model",
        classes=("CDASTrainer",),
        parents=("transformers.Trainer",),
        needs="prompts with and without the concept, and answers to both",
        commands=("cdas",),
        demo=None,
        page="cdas",
    ),
    Method(
        name="Steering",
        title="Activation Steering for Aligned Open-ended Generation without Sacrificing Coherence",
        arxiv="2604.08169",
        citation=r"""
@article{herbster2026steering,
    title   = {{Activation Steering for Aligned Open-ended Generation without Sacrificing Coherence}},
    author  = {Herbster and others},
    journal = {arXiv preprint arXiv:2604.08169},
    year    = {2026},
}
""",
        task="push a frozen language model towards or away from a trait while it writes",
        classes=("SteeringVector",),
        parents=("any causal language model",),
        needs="pairs of answers; no training",
        commands=("steer",),
        demo="steer",
        page="steering",
    ),
    Method(
        name="QAlign",
        title="Sample, Don't Search: Rethinking Test-Time Alignment for Language Models",
        arxiv="2504.03790",
        citation=r"""
@article{faria2025sample,
    title   = {{Sample, Don't Search: Rethinking Test-Time Alignment for Language Models}},
    author  = {Faria, Gon{\c{c}}alo and Smith, Noah A.},
    journal = {arXiv preprint arXiv:2504.03790},
    year    = {2025},
}
""",
        task="draw whole texts of a frozen language model in proportion to a reward",
        classes=("QAlign",),
        parents=("any causal language model",),
        needs="a reward; no training",
        commands=("generate --method qalign",),
        demo="decoding",
        page="qalign",
    ),
    Method(
        name="Transfer Q*",
        title="Transfer Q*: Principled Decoding for LLM Alignment",
        arxiv="2405.20495",
        citation=r"""
@inproceedings{chakraborty2024transfer,
    title     = {{Transfer Q*: Principled Decoding for LLM Alignment}},
    author    = {Chakraborty, Souradip and others},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2024},
}
""",
        task="decode an aligned language model towards another reward, looking ahead at every token",
        classes=("TransferQ",),
        parents=("any causal language model",),
        needs="a reward; no training",
        commands=("generate --method transfer-q",),
        demo=None,
        page="transfer_q",
    ),
    Method(
        name="SVDecode",
        title="Distribution-Aligned Decoding for Efficient LLM Task Adaptation",
        arxiv="2509.15888",
        citation=r"""
@inproceedings{hu2025distribution,
    title     = {{Distribution-Aligned Decoding for Efficient LLM Task Adaptation}},
    author    = {Hu and others},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2025},
}
""",
        task="extrapolate what a short fine-tuning has changed, at every token",
        classes=("SVDecodeLogitsProcessor",),
        parents=("transformers.LogitsProcessor",),
        needs="an adapter, or a tuned model and its base; no further training",
        commands=("generate --method svdecode",),
        demo=None,
        page="svdecode",
    ),
    Method(
        name="CHES",
        title="Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization",
        arxiv="2410.08847",
        citation=r"""
@inproceedings{razin2025unintentional,
    title     = {{Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization}},
    author    = {Razin, Noam and Malladi, Sadhika and Bhaskar, Adithya and Chen, Danqi and Arora, Sanjeev and
                 Hanin, Boris},
    booktitle = {International Conference on Learning Representations},
    year      = {2025},
}
""",
        task="find the preference pairs that will lower the likelihood of their chosen answers",
        classes=("add_ches_scores",),
        parents=("any preference dataset",),
        needs="preference pairs; no training",
        commands=("ches",),
        demo=None,
        page="ches",
    ),
    Method(
        name="GIST",
        title="GIST: Targeted Data Selection for Instruction Tuning via Coupled Optimization Geometry",
        arxiv="2602.18584",
        citation=r"""
@article{min2026gist,
    title   = {{GIST: Targeted Data Selection for Instruction Tuning via Coupled Optimization Geometry}},
    author  = {Min and Huang and Wan and Chen},
    journal = {arXiv preprint arXiv:2602.18584},
    year    = {2026},
}
""",
        task="find the training rows that serve a target task; LESS and plain cosines, too",
        classes=("add_gradient_scores",),
        parents=("any dataset of SFTTrainer",),
        needs="some dozens of rows of the task, and an adapter after a short training",
        commands=("gist",),
        demo=None,
        page="gist",
    ),
    Method(
        name="D²-Align",
        title="Taming Preference Mode Collapse via Directional Decoupling Alignment in Diffusion Reinforcement "
        "Learning",
        arxiv="2512.24146",
        citation=r"""
@inproceedings{chen2026taming,
    title     = {{Taming Preference Mode Collapse via Directional Decoupling Alignment in Diffusion Reinforcement
                 Learning}},
    author    = {Chen and others},
    booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
    year      = {2026},
}
""",
        task="take a picture reward's own taste out of it, before a model trains on it",
        classes=("DirectionalReward",),
        parents=("any reward of two encoders",),
        needs="prompts and a CLIP-like reward; seconds of fitting",
        commands=("d2-align",),
        demo=None,
        page="d2_align",
    ),
    Method(
        name="FADE",
        title="Reference-Specific Unlearning Metrics Can Hide the Truth: A Reality Check",
        arxiv="2510.12981",
        citation=r"""
@article{cho2025reference,
    title   = {{Reference-Specific Unlearning Metrics Can Hide the Truth: A Reality Check}},
    author  = {Cho and Hwang and Sala and Hwang and Cho and Cha},
    journal = {arXiv preprint arXiv:2510.12981},
    year    = {2025},
}
""",
        task="tell how far a generative model is from another, by what each of them makes",
        classes=("FADECallback",),
        parents=("transformers.TrainerCallback",),
        needs="two models and prompts; no training",
        commands=("fade",),
        demo=None,
        page="fade",
    ),
    Method(
        name="ELBO-T2IAlign",
        title="ELBO-T2IAlign: A Generic ELBO-Based Method for Calibrating Pixel-level Text-Image Alignment in "
        "Diffusion Models",
        arxiv="2506.09740",
        citation=r"""
@article{zhou2025elbo,
    title   = {{ELBO-T2IAlign: A Generic ELBO-Based Method for Calibrating Pixel-level Text-Image Alignment in
               Diffusion Models}},
    author  = {Zhou and others},
    journal = {arXiv preprint arXiv:2506.09740},
    year    = {2025},
}
""",
        task="find in a picture, pixel by pixel, what a text-to-image model sees of some words",
        classes=("ELBOAlignPipeline",),
        parents=("any Stable Diffusion or FLUX pipeline",),
        needs="a picture and words; no training",
        commands=("segment",),
        demo="elbo-align",
        page="elbo_align",
    ),
)


def method(name: str) -> Method:
    """
    The row of a name.

    Args:
        name (`str`): A method's name, such as `"RIVAL"`.

    Raises:
        KeyError: If no method has it.
    """
    rows = {row.name: row for row in METHODS}
    if name not in rows:
        raise KeyError(f"`name` must be one of {', '.join(rows)}, received {name!r}.")
    return rows[name]
