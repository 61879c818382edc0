"""The words of the names that Prefect's run forms fill in: its two user interfaces make them up in the browser.

They are in JavaScript there. `tests/flows/form/test_run_names.py` compares them with the installed Prefect.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ADJECTIVES = _words(
    """
    Awesome Rustic Small Gorgeous Fantastic Sleek Intelligent Unbranded Refined Licensed Generic Practical Ergonomic
    Handcrafted Tasty Handmade Incredible
    """
)
"""First words in V2, as in `Awesome-Ibex`."""

ANIMALS = _words(
    """
    Addax Aidi Ainu Akbash Akita Alabai Alpaca Alusky Ant Ape Asp Avocet Baboon Badger Baiji Barb Barbet Bass Bat Baya
    Beagle Beago Bear Beaski Beaver Bee Beetle Bichir Bilby Bird Birman Bison Boas Bobcat Boggle Boiga Bombay Bongo
    Bonobo Booby Borkie Bowfin Boxsky Briard Brug Caiman Camel Cantil Carp Cat Chipit Chipoo Chiton Chusky Cicada
    Coati Cobras Cockle Collie Conure Coral Corkie Cougar Cow Coyote Crab Crane Crow Cuckoo Cuscus Daniff Danios Daug
    Deer Dhole Dingo Discus Dodo Dog Donkey Dorgi Dorkie Douc Doxle Drever Duck Dugong Dunker Eagle Earwig Eel Egret
    Eider Eland Elk Emu Ermine Eryops Falcon Feist Ferret Fish Flea Fly Fossa Fox Frog Frug Gar Gecko Genet Gerbil
    Gibbon Gnat Goat Gollie Goose Gopher Grebe Grouse Guppy Hare Hawk Heron Hoopoe Horgi Hornet Horse Human Husky
    Hyena Ibex Ibis Iguana Impala Indri Insect Jabiru Jacana Jackal Jaguar Jerboa Kagu Kakapo Kea Keagle Kishu Kiwi
    Koala Kodkod Koolie Kowari Krait Krill Kudu Kuvasz Leech Lemur Liger Limpet Linnet Lion Lizard Llama Loach Locust
    Loris Lynx Macaw Maggot Magpie Malchi Mamba Marmot Mauzer Mayfly Meagle Miki Mink Mole Molly Monkey Moose Morkie
    Moth Mouse Mudi Mule Muskox Newt Nilgai Numbat Nutria Nyala Ocelot Okapi Olingo Olm Onager Opah Oribi Osprey Otter
    Owl Ox Oyster Parrot Peagle Pig Pigeon Pika Pitsky Pomchi Pomsky Poodle Poogle Possum Potoo Prawn Puffin Pug
    Puggle Puli Puma Pumi Python Quagga Quail Quokka Quoll Rabbit Raggle Rat Rhea Robin Sable Saiga Salmon Saluki
    Sambar Saola Seal Serval Shark Sheep Shichi Shrew Shrimp Skua Skunk Sloth Slug Snail Snake Somali Sphynx Spider
    Sponge Squid Stoat Stork Swan Taipan Takin Tang Tapir Tarpon Tetra Thrush Tick Tiger Torkie Tosa Toucan Towhee
    Trout Tuna Turaco Turkey Uakari Uguisu Unau Urial Vicuña Viper Vizsla Vole Walrus Wasp Weasel Wolf Wombat Worm
    Wrasse Xeme Xerus Yak Yarara Zebra Zebu Zokor Zonkey Zorse Zuchon
    """
)
"""Second words in V2."""

LETTERS = _words(
    """
    alpha beta eta gamma delta epsilon psi zeta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi
    chi omega
    """
)
"""First words in V1, which a number may follow, as in `beta12-orion-ring`."""

STARS = _words(
    """
    andromedae antliae apodis aquarii aquilae arae arietis aurigae bootis caeli camelopardalis cancri canis-majoris
    canis-minoris canum-venaticorum capricorni carinae cassiopeiae centauri ceti chamaeleontis circini columbae
    comae-berenices coronae-australis coronae-borealis corvi crateris crucis cygni delphini doradus draconis equulei
    eridani fornacis geminorum gruis horologii hydrae hydri indi lacertae leonis leonis-majoris leonis-minoris leporis
    librae lupi lyncis lyrae mensae microscopii monocerotis muscae normae octantis ophiuchi orion orionis pavonis
    pegasi persei phoenicis pictoris piscis-austrini piscium puppis pyxidis reticuli sagittae sagittarii sculptoris
    scuti serpentis sextantis tauri telescopii trianguli trianguli-australis tucanae ursae-majoris ursae-minoris
    velorum virginis volantis vulpeculae meridiana alphecca gienah deneb acrux sirius arcturus altair capella alkari
    adachi akechi akita ando aoki arai asai asano ashikaga ashina aso doi endo enya goto hara harada hatano hiraga
    hojo hondo hori hoshina hotta ikeda ina inagaki inoue ise ishida isshiki ito jo kagae kaneko kano kato katsura
    kawguchi kikuchi kira ko koide konishi kono koriki kuchiki kuki kuroda kuroki nagai naito naruse nasu nikaido
    nikki nishi nishina nishio nitta ochi oda okuda ooka oseki otani otera ouchi rokkaku saigo saito sakai sakurai
    sanada sano sasaki satake sato seki sengoku sen shinjo shoni so soga sonoda suzuki taguchi taira takeda tanaka
    tani toda todo togashi toki torii tsukushi tsutsui uesugi ujie ukita yagyu yonezu yoshida yoshii yuki newton
    einstein bohr darwin pasteur freud galilei kepler copernicus faraday maxwell bernard boas heisenburg pauling
    virchow rutherford dirac vesalius brahe buffon planck curie herschel lyell laplace hubble thomson born crick fermi
    euler liebig harvey malpighi huygens gauss haller kekule koch fischer mendeleev glashow watson bardeen neumann
    feynman wegener hawking laue bethe euclid mendel onnes morgan ehrlich mayr lamarck bayliss chomsky sanger dalton
    broglie linnaeus piaget simpson strauss margulis lorenz wilson hopkins elion selye teller libby haeckel salk
    kraepelin lysenko galton binet kinsey fleming skinner wundt galen avicenna descartes pascal boyle hooke halley
    bernoulli franklin priestley volta jenner cuvier humboldt davy babbage maury agassiz joule foucault kelvin lister
    roentgen edison pavlov meitner waksman watt alvarez mead yalow khorana townes aristotle plato ptolemy khwarizmi
    davinci gutenberg landau nemtsov gamow adorn aglarond amroth andrast andrath anduin anfalas angmar angrenost
    annuminas anorien argonath arnor arthedain azanulbizar baranduin barad-dur barazinbar belfalas bruinen
    bundushathur calanhad calembel calenardhon caradhras carchost cardolan carnen celebdil celduin ciril dagorlad
    dorwinion dunharrow durthang dwimorberg dwimordene edoras egladil eilenach elostirion enedwaith eotheod erebor
    erech eregion erelas eriador erui esgaroth ethring evendim fangorn fanuidhol firiendfeld firienholt folde
    forlindon forlond fornost forodwaith forochel gilrain glanduin gondor gorgoroth greyling gunabad gwathlo
    halifirien harad harlond harnen harondor hoarwell imladris imloth isen ithilien kelos khand lamedon langwell
    lebbenin lefnui lhun limlight lindon lithlad lorien lossarnach lothlorien meduseld methedras minas mindolluin
    minhiriath mirrormere morannon mordor morgai morgulduin moria morthond mundburg nanduhirion narchost nardol naith
    nimrodel nindalf orthanc orodruin osgiliath pelargir pelennor poros rauros rhosgobel rhovanion rhudaur rhun ringlo
    sammath sarn serni sirith tarlang tharbad thrihyrne tolfalas udun umbar undeeps wold zirakzigil acamar achrady
    adarak adigeon ajilon akaali akritiri alastria aldea alfa algeron alonda althos alture amargosa amleth andevian
    andoria andros angosia antede antica antos achanis archer ardana argana argelius argratha argus ariannus arkaria
    arloff armus arret arvada aschelan astral atalia atbar athos atifs atlec atrea aucdet aurelia avenal axanar babel
    bajor balancar balosnee barisa barkon barradas barson barzan beltane benecia benthos benzar betazed bilana bilaren
    bolarus bopak boraal boradis boreal boreth borka boslic bracas braslota brax brekka brinda browder bryma bynaus
    caere cait calder caldik caldonia caldos caleb callinon calondia campor camus canopius carema carnel carraya
    casperia castal catulla celtris cerberus cestus chalna chaltok chandra chaya cheron cirrus coltar coridan corvan
    cygnet dakala daled danula daran davlos dayos decos dekendi delb delinia delios delos delvos deneva denobula
    deriben dessica detria devidia devos dimorus dinaal donatu doraf dorvan dozaria draken drayan draygo draylax
    draylon drema dreon dulisian durenia duronom dytallix efros ekos elanu elba ellora emila eminiar enara endicor
    erabus errikang evadne evora excalbia exo fabrina fahleena farius faynos felton fendaus fina finnea feris folnar
    forcas forlat fornax gagarin galador gallos galor galorda galvin gamelan ganalda garadius garenor garon gaspar
    gault gedi gema gamaris gemulon ghorusda gideon golana gonal gorthos gramilia grazer haakon hakton halana halee
    halii halka hanoli hanon hanoran harrakis harrod hayashi hekaras hemikek heva hoek holberg holna hottar hupyria
    hurada hurkos iadora iconia icor idran ilari ilecom ilidaria illyria inavar indri inferna ingraham invernia
    iraatan irtok itamish ivor iyaar izar janus japori jaros jerido jouret juhraya kabrel kaelon kaldra kallas kanda
    kantare karemma kataan katerrea kavaria kavis kazlati kelis kelton kelva kenda kentanna kesat kesprytt kessik
    khitomer khosia kiberia klaestron klavdia klendeth kolandra kolarus koltair kora koralis korat korma korridon
    korris kostolain kotara kotati kraus kressari krios ktaris kurill kurl kyana kylata kyria landris lappa largo
    lazon ledonia ledos legara lemma lerishi levinius ligobis ligon ligos lissepia loracus loren loval luria lya
    lyshan lysia magus makus malaya malcor malindi malkus malon malur manu maranga marcos mariah marijne mariposa
    marlonia marva matalas mataline mavala maxia mazar meezan meldrar meles melina melnos merak midos milika minara
    minnobia minos minshara miri miridian mislen mithren moab modean monac monea mordan morikin morska mudd mudor
    mundahla nagor nahmi nanibia napinne nerendra nausicaa nel nelvana nervala nessik neubilia neural nibia nibiru
    nigala nimbus ninipia nivoch norcadia norellus norkan norpin nyria oby ocampa oceanus ogat ogus ohniaka omekla
    orelious orendal organia orias ornara otar paan pacifica palamar panora paraagan parada parsion paxsor pegos
    peliar pellius pendari pentarus pentath penthara pernaia pollux porakas portas prakal pralor praxis preenos prema
    pullock pyris pythro qualor quarra quatal quazulu quinor rachelis rakal rakhar rakosa ramatis ramura rana ranza
    regulak reina relva remmii remus rhymus rinax risa rivos rochanie romulus ronara rondac rousseau ruah rubicun
    runara rura rutia sakura saltok salva sarona sarthong sauria scalos securus sefalla selay selek selenia septimis
    seros setlik shantil shelia sheva shiralea sikaris simperia sirrie sobras solais solosos sothis soukara stameris
    straleb styris sulvin sumiko surata tagra tagus takar takara talax talos tamar tandar tanuga tarakis tarellia
    taresia tarkalea tarod tarok tarsus taurus tavela teerza tellar telsius teplan terlina terosa tessen tessik tethys
    thalos thanatos thasus thelka thera tholia thurasia tiburon tilonus timor titus tohvun torad torga torman torona
    toroth torros tracken trebus trelkis triacus trialas triannon trill triona troyius turkana tyree tyrellia tyrus
    tzenketh udala ufandi umoth unefra uxal vacca vadris vagra valo valt vanden vandor vandros varala velara veloz
    vendikar ventani ventax verez veridian vico vilmoran vissia volan volchok wadi wysanti xanthras xantoras xendi
    xindus yadalla yadera yonada zadar zahl zakdorn zalkon zaran zayra zeon zetar zibalia zytchin acanceh acanmul
    actuncan aguateca akte almuchil ancona balakbal balamkku becan bejucal blanca bonampak cahal calakmul campeche
    cancuen cansacbe caracol cerros chac chactun chakalal chakokot chal chapayal chiapa chichen chichmul chijoj
    chinaha chocola chojolom chorro civiltuk coba comitan consacbe copan corona corozal cuca cuello culuba dzekilna
    ekab encanto gumarcaj hotzuc halakal hochob holactun huacutal ichmac ichmul ichpich ikil itsimte ixil iximche
    ixkun ixlu ixtelha ixtatan ixtutz jacawitz joyanca kabah kana kanki kantunil kaxuinic kayal kinal kiuic komchen
    lacanha maxcanu meco michol mixco mulchic muluch muneca naachtun nakbe nakum okop oxkintok oxpemul oxtankah
    palenque pechal pestac pixoy pomuch quirigua qumarkaj sabacche sacchana sacnicte sacul silvituc takalik tancah
    techoh tikal tohcok topoxte tunich ucanal uinic uitzina ukum uxbenka uxmal uxul waka xcambo xcaret xculoc xelha
    xlapak xpuhil xtampak xtobo xul xultun xupa xutilha yaxha yaxuna zacpeten zaculeu achernar acrab acubens adhara
    adhil adib ain albali alchibah aldebaran alfirk algebar algedi algenib algieba algol algorab alhena alioth alkaid
    alkes almak almeisan alnair alnasl alnilam alnitak alphard alpheratz alrescha alsafi alsuhail alterf aludra alula
    alya ankaa arkab arneb arrakis atik auva azha baham baten beid benetnash betelguese botein caph celbalrai chort
    cursa dabih denebola diphda dschubba dubhe dulfim dziban edasich eltanin enif errai fomalhaut furud gomeisa hadar
    hamal heka homam jabbah kaitos kaus keid kitalpha kochab kurhah lesath maasym maaz mankib marfik markab matar
    mebsuta megrez meissa mekbuda menkar mintaka mirak mizar mothallah muphrid murzim nashira nekkar nihal nusakan
    nushaba okda phact phad pherkad rastaban rigel rigilkent risha rukbah sabik sadalsuud sadr saiph scheat shaula
    shedir sheliak sheratan sirrah skat sulafat talitha tania tarf thuban vega wasat wezn yed zaurac zawiah cherika
    dunia duniya hullanta jata kiania kianira maleda maret marinda nyika nyota onile osumare sama sarraqa shanira
    zuvan
    """
)
"""Second words in V1."""

PLACES = _words(
    """
    a b c d e f g h k m n p q r v x y z adjunct anomaly band boundary cloud cluster collapse conflux expanse field
    fringe instability manifold mass nebula point quadrant reach ring sector shift tensor terminus vector void warp
    """
)
"""Third words in V1, which a name may lack."""
